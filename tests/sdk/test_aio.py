"""The `.aio` forms, and plain calls made inside a running event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.sdk.fake_gateway import FakeGateway
from tests.support.eventually import eventually

import squall
from squall import exception, session

app = squall.App("aio")


@app.function()
def double(x: int) -> int:
    return 2 * x


@app.function()
def refuse(x: int) -> int:
    raise ValueError(f"{x} refused")


@app.function()
def count(n: int) -> Iterator[int]:
    yield from range(n)


@pytest.fixture
def running(gateway: FakeGateway, connected: session.Session) -> Iterator[FakeGateway]:
    """The app, running on the gateway."""
    gateway.serve(app)
    with app.run():
        yield gateway


async def test_an_app_runs_in_an_async_with_block(gateway: FakeGateway, connected: session.Session) -> None:
    gateway.serve(app)
    async with app.run() as same:
        assert same is app
        assert await double.remote.aio(2) == 4
    assert app.app_id is None


async def test_every_way_to_call_has_an_async_form(running: FakeGateway) -> None:
    assert await double.remote.aio(2) == 4
    assert [item async for item in count.remote_gen.aio(3)] == [0, 1, 2]
    assert [item async for item in double.map.aio(range(3))] == [0, 2, 4]
    assert [item async for item in double.starmap.aio([(1,), (2,)])] == [2, 4]
    await double.for_each.aio(range(3))
    call = await double.spawn.aio(5)
    assert await call.get.aio() == 10
    assert await squall.FunctionCall.gather.aio(call, call) == [10, 10]
    await call.cancel.aio()
    assert running.cancelled == [call.object_id]


async def test_lookups_have_an_async_form_and_never_warn(running: FakeGateway) -> None:
    call = await double.spawn.aio(3)
    assert await (await squall.FunctionCall.from_id.aio(call.object_id)).get.aio() == 6
    assert repr(await squall.Function.from_name.aio("a", "f")) == repr(squall.Function.from_name("a", "f"))
    assert repr(await squall.Cls.from_name.aio("a", "C")) == "squall.Cls(a/C)"


async def test_exceptions_come_through(running: FakeGateway) -> None:
    with pytest.raises(ValueError, match="3 refused"):
        await refuse.remote.aio(3)
    with pytest.raises(ValueError, match="refused"):
        async for _ in refuse.map.aio([1, 2]):
            pass
    results = [item async for item in refuse.map.aio([1, 2], return_exceptions=True)]
    assert [str(result) for result in results] == ["1 refused", "2 refused"]


async def test_calls_go_on_at_the_same_time(running: FakeGateway) -> None:
    together = threading.Barrier(20)

    def meet(x: int) -> int:
        together.wait(10)
        return x

    running.functions["double"] = meet
    assert await asyncio.gather(*[double.remote.aio(n) for n in range(20)]) == list(range(20))


async def test_a_call_whose_task_is_cancelled_is_cancelled_on_the_server(running: FakeGateway) -> None:
    started, ending = threading.Event(), threading.Event()

    def wait(x: int) -> None:
        started.set()
        ending.wait(10)

    running.functions["double"] = wait
    task = asyncio.get_running_loop().create_task(double.remote.aio(1))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: len(running.cancelled) == 1)
    ending.set()


async def test_a_cancelled_generator_ends_on_the_server(running: FakeGateway) -> None:
    async def consume() -> None:
        async for item in count.remote_gen.aio(100_000):
            if item == 3:
                await asyncio.sleep(100)

    task = asyncio.get_running_loop().create_task(consume())
    await eventually(lambda: len(running.headers_of("POST /v1/calls")) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: len(running.cancelled) == 1)


async def test_iterables_of_a_map_are_consumed_on_the_loop_of_the_caller(running: FakeGateway) -> None:
    threads = set()

    async def inputs() -> AsyncIterator[int]:
        for number in range(50):
            threads.add(threading.get_ident())
            await asyncio.sleep(0)
            yield number

    assert [item async for item in double.map.aio(inputs())] == [2 * x for x in range(50)]
    assert threads == {threading.get_ident()}


async def test_a_slow_async_iterable_does_not_hold_back_results(running: FakeGateway) -> None:
    given = asyncio.Event()

    async def inputs() -> AsyncIterator[int]:
        yield 1
        await given.wait()  # set when the first result is there
        yield 2

    results = []
    async for result in double.map.aio(inputs()):
        results.append(result)
        given.set()
    assert results == [2, 4]


async def test_plain_and_async_iterables_go_together_and_the_shortest_ends_the_map(running: FakeGateway) -> None:
    async def inputs() -> AsyncIterator[int]:
        for number in range(1000):
            yield number

    running.functions["double"] = lambda x, y: (x, y)
    assert [item async for item in double.map.aio(inputs(), "ab")] == [(0, "a"), (1, "b")]


async def test_a_map_that_is_left_early_is_cancelled(running: FakeGateway) -> None:
    results = double.map.aio(range(100_000))
    async for result in results:
        if result > 10:
            break
    await results.aclose()  # type: ignore[attr-defined]
    assert len(running.cancelled) == 1
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("squall-map")]


async def test_a_plain_call_inside_a_loop_works_and_warns(running: FakeGateway) -> None:
    with pytest.warns(exception.AsyncUsageWarning, match=r"Function\.remote\.aio"):
        assert double.remote(2) == 4
    with pytest.warns(exception.AsyncUsageWarning, match=r"Function\.spawn\.aio"):
        call = double.spawn(2)
    with pytest.warns(exception.AsyncUsageWarning, match=r"FunctionCall\.get\.aio"):
        assert call.get(timeout=1) == 4


async def test_the_warning_can_be_turned_off(running: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUALL_ASYNC_WARNINGS", "0")
    assert double.remote(2) == 4


async def test_a_plain_with_block_inside_a_loop_works_and_warns(
    gateway: FakeGateway, connected: session.Session
) -> None:
    with pytest.warns(exception.AsyncUsageWarning, match="async with app.run"), app.run():
        assert app.app_id is not None


@pytest.mark.parametrize("form", ["map", "starmap", "for_each"])
async def test_a_plain_map_inside_a_loop_is_refused_and_the_async_form_named(running: FakeGateway, form: str) -> None:
    with pytest.raises(exception.InvalidError) as caught:
        getattr(double, form)([1])
    assert f"{form}.aio" in caught.value.hint


async def test_the_users_context_reaches_the_thread_that_makes_the_call(running: FakeGateway) -> None:
    import contextvars

    variable = contextvars.ContextVar("variable", default="nothing")
    variable.set("something")
    from squall import blocking

    assert await blocking.run(variable.get) == "something"
