"""Operations on dicts that several threads make at once: they go together, and each has an outcome of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.sdk.fake_gateway import FakeGateway
from tests.support.eventually import eventually

import squall
from squall import errors, session, together

Tasks = list["asyncio.Task[Any]"]
TOGETHER = "/v1/entries"


@pytest.fixture
def state(gateway: FakeGateway, connected: session.Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[squall.Dict]:
    """A dict of the gateway. Nothing is under way any more when the test ends."""
    monkeypatch.setattr(together, "SIDE_BY_SIDE", 1)
    monkeypatch.setattr(together, "LINE_S", 60.0)  # a busy machine needs its time until all stand in line
    yield squall.Dict.from_id("di-1")
    ways = together._of(connected.client)
    assert [(group.senders, *group.waiting, *group.turns) for group in (ways.looks, ways.changes)] == [(0,), (0,)]
    assert ways.waiters == 0


def in_line(here: session.Session) -> int:
    ways = together._of(here.client)
    return len(ways.looks.waiting) + len(ways.changes.waiting)


def start(work: Any) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(work)


@asynccontextmanager
async def one_on_its_way(gateway: FakeGateway, here: session.Session, first: Any, *more: Any) -> AsyncIterator[Tasks]:
    """Operations: the first one's request waits for its answer until the block ends, the others for the first."""
    gateway.open.clear()
    before = len(gateway.entries_alone)
    try:
        tasks = [start(first)]
        await eventually(lambda: len(gateway.entries_alone) == before + 1)
        for number, each in enumerate(more):
            tasks.append(start(each))
            await eventually(lambda: in_line(here) == number + 1)  # noqa: B023
        yield tasks
    finally:
        gateway.open.set()


async def ended(tasks: Tasks) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_comes_while_others_are_under_way_goes_in_one_request_with_an_outcome_each(
    gateway: FakeGateway, connected: session.Session, state: squall.Dict
) -> None:
    puts = [state.put.aio(number, f"value {number}") for number in range(20)]
    async with one_on_its_way(gateway, connected, *puts) as tasks:
        pass
    assert await ended(tasks) == [True] * 20
    assert [len(some) for some in gateway.entries_together] == [19]

    more = [state.pop.aio(3), state.pop.aio("missing"), state.pop.aio("gone", "default"), state.put.aio("x", 1)]
    async with one_on_its_way(gateway, connected, state.put.aio("y", 2), *more) as tasks:
        pass
    _, popped, missing, default, put = await ended(tasks)
    assert (popped, type(missing), default, put) == ("value 3", KeyError, "default", True)
    assert [len(some) for some in gateway.entries_together] == [19, 4]
    assert state["x"] == 1


async def test_looks_do_not_wait_for_changes(
    gateway: FakeGateway, connected: session.Session, state: squall.Dict
) -> None:
    async with one_on_its_way(gateway, connected, state.put.aio("k", 1)) as tasks:
        tasks.append(start(state.get.aio("k")))
        await eventually(lambda: [op["op"] for op in gateway.entries_alone] == ["put", "get"])
    await ended(tasks)


async def test_few_threads_do_not_wait_for_each_other(
    gateway: FakeGateway, state: squall.Dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "SIDE_BY_SIDE", 3)
    gateway.open.clear()
    tasks = [start(state.put.aio(number, number)) for number in range(3)]
    try:
        await eventually(lambda: len(gateway.entries_alone) == 3)
    finally:
        gateway.open.set()
    assert await ended(tasks) == [True] * 3
    assert gateway.entries_together == []


def test_one_thread_makes_plain_requests(gateway: FakeGateway, state: squall.Dict) -> None:
    for number in range(5):
        state[number] = number
    assert [state[number] for number in range(5)] == list(range(5))
    assert len(gateway.entries_alone) == 10
    assert gateway.entries_together == []


async def test_an_error_is_that_operations_own(
    gateway: FakeGateway, connected: session.Session, state: squall.Dict
) -> None:
    refused = errors.to_wire(errors.NotFoundError("there is no di-1"))
    gateway.entry_answers["pop"] = {"error": refused}
    work = [state.put.aio("a", 1), state.pop.aio("k"), state.put.aio("b", 2)]
    async with one_on_its_way(gateway, connected, *work) as tasks:
        pass
    _, error, put = await ended(tasks)
    assert (type(error), put) == (errors.NotFoundError, True)
    assert "there is no di-1" in str(error)


@pytest.mark.parametrize("answer", [{"again": True}, {"error": errors.to_wire(errors.ServiceError("later"))}])
async def test_what_took_too_long_or_may_be_repeated_is_sent_alone_as_the_same_request(
    gateway: FakeGateway, connected: session.Session, state: squall.Dict, answer: dict[str, Any]
) -> None:
    gateway.entry_answers["pop"] = answer
    work = [state.put.aio("k", 1), state.pop.aio("k"), state.put.aio("b", 2)]
    async with one_on_its_way(gateway, connected, *work) as tasks:
        pass
    assert await ended(tasks) == [True, 1, True]
    [[popped, _]] = gateway.entries_together
    alone = [op for op in gateway.entries_alone if op["op"] == "pop"]
    assert [op["request"] for op in alone] == [popped["request"]]


async def test_when_the_request_for_several_breaks_each_is_sent_alone_as_the_same_request(
    gateway: FakeGateway, connected: session.Session, state: squall.Dict
) -> None:
    gateway.break_next.append(f"POST {TOGETHER}")
    puts = [state.put.aio(number, number) for number in range(6)]
    async with one_on_its_way(gateway, connected, *puts) as tasks:
        pass
    assert await ended(tasks) == [True] * 6
    [some] = gateway.entries_together
    assert len(some) == 5
    again = [op["request"] for op in gateway.entries_alone[1:]]
    assert sorted(again) == sorted(op["request"] for op in some)


async def test_a_server_that_does_not_know_the_route_gets_plain_requests(
    gateway: FakeGateway, connected: session.Session, state: squall.Dict
) -> None:
    gateway.takes_entries_together = False
    puts = [state.put.aio(number, number) for number in range(6)]
    async with one_on_its_way(gateway, connected, *puts) as tasks:
        pass
    assert await ended(tasks) == [True] * 6
    assert gateway.entries_together == []
    assert len(gateway.entries_alone) == 6


async def test_who_is_cancelled_in_line_is_not_sent(
    gateway: FakeGateway, connected: session.Session, state: squall.Dict
) -> None:
    puts = [state.put.aio(number, number) for number in range(5)]
    async with one_on_its_way(gateway, connected, *puts) as tasks:
        tasks[2].cancel()
        await eventually(lambda: in_line(connected) == 3)
    outcomes = await ended(tasks)
    assert isinstance(outcomes.pop(2), asyncio.CancelledError)
    assert outcomes == [True] * 4
    assert [len(some) for some in gateway.entries_together] == [3]


@pytest.mark.parametrize("which", [1, 3])  # the sender is the first that was in line
async def test_who_is_cancelled_on_the_way_breaks_the_request_and_the_others_are_sent_alone(
    gateway: FakeGateway,
    connected: session.Session,
    state: squall.Dict,
    monkeypatch: pytest.MonkeyPatch,
    which: int,
) -> None:
    monkeypatch.setattr(together, "TIMEOUT_S", 60.0)
    gateway.open_together.clear()
    puts = [state.put.aio(number, number) for number in range(5)]
    async with one_on_its_way(gateway, connected, *puts) as tasks:
        pass
    try:
        await eventually(lambda: len(gateway.entries_together) == 1)
        tasks[which].cancel()
        outcomes = await ended(tasks)
    finally:
        gateway.open_together.set()
    assert isinstance(outcomes.pop(which), asyncio.CancelledError)
    assert outcomes == [True] * 4
    [some] = gateway.entries_together
    again = [op["request"] for op in gateway.entries_alone[1:]]
    assert len(again) == 3, "the one that was cancelled is not sent again"
    assert set(again) < {op["request"] for op in some}


async def test_who_has_waited_for_too_long_goes_alone(
    gateway: FakeGateway, connected: session.Session, state: squall.Dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "LINE_S", 0.01)
    gateway.open.clear()
    tasks = [start(state.put.aio(0, 0))]
    try:
        await eventually(lambda: len(gateway.entries_alone) == 1)
        tasks += [start(state.put.aio(number, number)) for number in range(1, 4)]
        await eventually(lambda: len(gateway.entries_alone) == 4)
    finally:
        gateway.open.set()
    assert await ended(tasks) == [True] * 4
    assert gateway.entries_together == []
