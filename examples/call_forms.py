"""Every way to call a function, one line of output for each. What each line must say is asserted by its test.

squall run examples/call_forms.py
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

import squall

app = squall.App("call-forms")


@app.function()
def add(a: int, b: int = 1) -> int:
    return a + b


@app.function()
async def add_async(a: int, b: int = 1) -> int:
    await asyncio.sleep(0.01)
    return a + b


@app.function()
def count_to(n: int) -> Iterator[int]:
    yield from range(1, n + 1)


@app.function()
async def count_to_async(n: int) -> AsyncIterator[int]:
    for number in range(1, n + 1):
        await asyncio.sleep(0.01)
        yield number


@app.function()
def fail(message: str) -> None:
    raise ValueError(message)


@app.function()
def odd_only(n: int) -> int:
    if n % 2 == 0:
        raise ValueError(f"{n} is even")
    return n


@app.function()
def sleep_long() -> str:
    import time

    time.sleep(60)
    return "overslept"


@app.function()
def sum_of_squares(n: int) -> int:
    """A function that calls another one from its container."""
    return sum(square.map(range(n)))


@app.function()
def square(n: int) -> int:
    return n * n


@app.cls()
class Counter:
    start: int = squall.parameter(default=100)

    @squall.enter()
    def prepare(self) -> None:
        self.base = self.start

    @squall.method()
    def plus(self, n: int) -> int:
        return self.base + n

    @squall.method()
    def upwards(self, n: int) -> Iterator[int]:
        for number in range(n):
            yield self.base + number

    @squall.exit()
    def leave(self) -> None:
        print(f"counter of {self.start} leaves")


def calls() -> None:
    print("local:", add.local(1, b=2))
    print("remote:", add.remote(1, b=2))
    print("remote of async:", add_async.remote(3))
    print("remote_gen:", list(count_to.remote_gen(4)))
    print("remote_gen of async:", list(count_to_async.remote_gen(3)))
    print("nested:", sum_of_squares.remote(5))


def maps() -> None:
    print("map:", list(add.map([1, 2, 3], [10, 20, 30])))
    print("map with kwargs:", list(add.map(range(3), kwargs={"b": 5})))
    print("map unordered:", sorted(add.map(range(5), order_outputs=False)))
    print("map of nothing:", list(add.map([])))
    print("starmap:", list(add.starmap([(1, 2), (3, 4)])))
    print("for_each:", add.for_each(range(3)))
    results = odd_only.map(range(4), return_exceptions=True)
    print("map with exceptions:", [r if isinstance(r, int) else f"{type(r).__name__}({r})" for r in results])


def errors() -> None:
    try:
        fail.remote("on purpose")
    except ValueError as error:
        print("exception:", type(error).__name__, error)
    try:
        list(odd_only.map([1, 2, 3]))
    except ValueError as error:
        print("first failure of a map:", error)


def spawned() -> None:
    call = add.spawn(20, b=22)
    print("spawn:", call.get())
    print("from_id:", squall.FunctionCall.from_id(call.object_id).get(timeout=30))
    print("gather:", squall.FunctionCall.gather(add.spawn(1), add.spawn(2)))
    sleeper = sleep_long.spawn()
    try:
        sleeper.get(timeout=0)
    except TimeoutError:
        print("get with a timeout:", "not yet")
    sleeper.cancel()
    try:
        sleeper.get(timeout=30)
    except squall.exception.Error as error:
        print("cancel:", type(error).__name__)


def classes() -> None:
    print("method:", Counter().plus.remote(1))
    print("method with parameter:", Counter(start=7).plus.remote(1))
    print("method map:", list(Counter(start=7).plus.map(range(3))))
    print("method generator:", list(Counter(start=1).upwards.remote_gen(3)))
    print("method local:", Counter(start=3).plus.local(4))


async def asynchronous() -> None:
    print("remote.aio:", await add.remote.aio(1, b=2))
    print("remote_gen.aio:", [n async for n in count_to.remote_gen.aio(3)])
    print("map.aio:", [n async for n in add.map.aio([1, 2, 3])])
    print("starmap.aio:", [n async for n in add.starmap.aio([(1, 2), (3, 4)])])
    print("for_each.aio:", await add.for_each.aio([1, 2]))
    call = await add.spawn.aio(5)
    print("spawn.aio:", await call.get.aio())
    print("gather.aio:", await squall.FunctionCall.gather.aio(await add.spawn.aio(1), await add.spawn.aio(2)))
    print("together:", await asyncio.gather(*(add_async.remote.aio(n) for n in range(4))))


@app.local_entrypoint()
def main() -> None:
    calls()
    maps()
    errors()
    spawned()
    classes()
    asyncio.run(asynchronous())
