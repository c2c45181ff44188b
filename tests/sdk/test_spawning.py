"""Spawned calls of several threads: they leave together, each is accepted once, and one's end is not the others'."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from tests.sdk.fake_gateway import FakeGateway
from tests.support.eventually import eventually

import squall
from squall import errors, exception, session, spawning

app = squall.App("spawning")
SINGLE = "/v1/calls?wait=0"


@app.function()
def double(x: int) -> int:
    return 2 * x


@app.function()
def triple(x: int) -> int:
    return 3 * x


@app.function()
def length(data: bytes) -> int:
    return len(data)


@pytest.fixture
def running(gateway: FakeGateway, connected: session.Session) -> Iterator[FakeGateway]:
    """The app, running on the gateway. Nobody waits or sends any more when the test ends."""
    gateway.serve(app)
    with app.run():
        yield gateway
    assert spawning._groups == {}


def waiting() -> int:
    """Calls that wait for another thread's request to end."""
    return sum(len(group.waiting) for group in spawning._groups.values())


Tasks = list["asyncio.Task[squall.FunctionCall]"]


@asynccontextmanager
async def one_on_its_way(gateway: FakeGateway, function: squall.Function, *more: int) -> AsyncIterator[Tasks]:
    """Spawned calls: the first one's request waits for its answer until the block ends, the others for the first."""
    gateway.open.clear()
    try:
        tasks = [asyncio.get_running_loop().create_task(function.spawn.aio(0))]
        await eventually(lambda: gateway.paths("POST").count(SINGLE) == 1)
        tasks += [asyncio.get_running_loop().create_task(function.spawn.aio(n)) for n in more]
        await eventually(lambda: waiting() == len(more))
        yield tasks
    finally:
        gateway.open.set()


async def test_calls_that_come_while_one_is_under_way_go_up_in_one_request(running: FakeGateway) -> None:
    async with one_on_its_way(running, double, *range(1, 20)) as tasks:
        pass
    calls = await asyncio.gather(*tasks)

    assert running.paths("POST").count(SINGLE) == 1
    [together] = running.spawned_together
    assert sorted(together) == sorted(call.object_id for call in calls[1:])
    assert await squall.FunctionCall.gather.aio(*calls) == [2 * n for n in range(20)]


async def test_calls_of_another_function_do_not_wait(running: FakeGateway) -> None:
    async with one_on_its_way(running, double, 1) as tasks:
        other = asyncio.get_running_loop().create_task(triple.spawn.aio(2))
        await eventually(lambda: running.paths("POST").count(SINGLE) == 2)
    assert await (await other).get.aio() == 6
    assert [await call.get.aio() for call in await asyncio.gather(*tasks)] == [0, 2]


def test_one_thread_makes_plain_requests(running: FakeGateway) -> None:
    calls = [double.spawn(n) for n in range(3)]

    assert running.paths("POST").count(SINGLE) == 3
    assert running.spawned_together == []
    assert [call.get() for call in calls] == [0, 2, 4]


async def test_large_and_keyed_calls_go_up_by_themselves(running: FakeGateway) -> None:
    async with one_on_its_way(running, double):
        large = asyncio.get_running_loop().create_task(length.spawn.aio(b"x" * 100_000))
        keyed = asyncio.get_running_loop().create_task(double.with_idempotency_key("k").spawn.aio(4))
        await eventually(lambda: running.paths("POST").count(SINGLE) == 3)
    assert await (await large).get.aio() == 100_000
    assert await (await keyed).get.aio() == 8


async def test_a_caller_that_is_cancelled_while_it_sends_takes_nobody_with_it(running: FakeGateway) -> None:
    async with one_on_its_way(running, double, 1, 2, 3) as tasks:
        tasks[0].cancel()
        await eventually(lambda: len(running.spawned_together) == 1)
    calls = await asyncio.gather(*tasks[1:])

    assert tasks[0].cancelled()
    assert [await call.get.aio() for call in calls] == [2, 4, 6]


async def test_a_caller_that_is_cancelled_while_it_waits_leaves_the_others(running: FakeGateway) -> None:
    async with one_on_its_way(running, double, 1, 2, 3) as tasks:
        tasks[2].cancel()
        await eventually(lambda: waiting() == 2)
    calls = await asyncio.gather(tasks[0], tasks[1], tasks[3])

    assert [await call.get.aio() for call in calls] == [0, 2, 6]
    assert [len(together) for together in running.spawned_together] == [2]


async def test_a_broken_answer_is_asked_for_again_with_the_same_calls(running: FakeGateway) -> None:
    running.break_next.append("POST /v1/spawns")
    async with one_on_its_way(running, double, 1, 2) as tasks:
        pass
    calls = await asyncio.gather(*tasks)

    first, again = running.spawned_together
    assert first == again
    assert [await call.get.aio() for call in calls] == [0, 2, 4]


def test_calls_of_one_moment_lie_on_one_shard_and_those_of_a_while_on_all() -> None:
    step_ns = spawning.SHARD_NS // 10
    found = [spawning.shard_at(n * step_ns, 4) for n in range(80)]
    assert [len(set(found[n : n + 10])) for n in range(0, 80, 10)] == [1] * 8
    assert [found.count(shard) for shard in range(4)] == [20] * 4


async def test_a_refusal_is_raised_for_each_of_them_and_the_next_ones_are_sent(running: FakeGateway) -> None:
    running.errors["POST /v1/spawns"] = [errors.ResourceExhaustedError("the queue is full")]
    async with one_on_its_way(running, double, 1, 2) as tasks:
        pass
    first, *refused = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(first, squall.FunctionCall)
    assert [type(error) for error in refused] == [exception.ResourceExhaustedError] * 2
    assert (await double.spawn.aio(4)) is not None
