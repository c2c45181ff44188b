"""Generators: items, credit, restarts, resumption."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tests.services.gateway.test_maps import Results
from tests.services.gateway.world import TinyAgent, World, a_generator, a_world, call_headers, succeeded
from tests.support.clock import FakeClock
from tests.support.eventually import eventually

from squall.http_api.protocol import FrameKind, Header
from squall_contracts.calls import CallRequested
from squall_contracts.functions import pool_id

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Generating:
    """A generator call that is open, and the agent that runs it."""

    def __init__(self, world: World, agent: TinyAgent, headers: dict[str, str]) -> None:
        self.world = world
        self.agent = agent
        self.headers = headers
        self.call = headers[Header.CALL]

    def open(self):
        return self.world.http.stream("POST", "/v1/calls?wait=55", headers=self.headers, content=b"3")

    async def request(self) -> CallRequested:
        await eventually(lambda: [r for r in self.agent.seen if r.call == self.call])
        return next(r for r in self.agent.seen if r.call == self.call)

    async def end(self, items: int, attempt: str = "1-aaaaaa", **more: object) -> None:
        request = await self.request()
        await self.agent.finish(request, replace(succeeded(request, b"", attempt, items=items), **more))


async def generating(world: World) -> Generating:
    app = await world.publish(a_generator())
    agent = world.agent(lambda request: None)
    await agent.serve(pool_id(app["functions"]["count"]))
    return Generating(world, agent, call_headers(app, "count", kind="generator"))


async def test_items_come_in_order_and_the_result_ends_the_stream(world: World) -> None:
    call = await generating(world)
    async with call.open() as response:
        results, request = Results(response), await call.request()
        for seq in range(3):
            call.agent.send_item(request, "1-aaaaaa", seq, b"%d" % seq)
        await call.end(items=3)
        found = await results.take(4)
        with pytest.raises(StopAsyncIteration):
            await results.next()
    await call.agent.stop()

    assert [frame.kind for frame in found] == [FrameKind.ITEM] * 3 + [FrameKind.RESULT]
    assert [frame.payload for frame in found[:3]] == [b"0", b"1", b"2"]
    assert found[1].meta == {"attempt": "1-aaaaaa", "seq": 1, "encoding": "pickle"}
    assert found[3].meta["items"] == 3


async def test_the_agent_is_told_how_much_its_reader_has_taken(world: World) -> None:
    call = await generating(world)
    taken = await call.agent.credits(call.call)
    async with call.open() as response:
        results, request = Results(response), await call.request()
        for seq in range(300):
            call.agent.send_item(request, "1-aaaaaa", seq, b"")
        await results.take(300)
        await eventually(lambda: taken and taken[-1].taken == 300)
        await call.end(items=300)
    await call.agent.stop()

    assert {credit.attempt for credit in taken} == {"1-aaaaaa"}
    assert [credit.taken for credit in taken] == sorted(credit.taken for credit in taken)


async def test_a_new_attempt_is_told_and_items_of_the_old_one_are_dropped(world: World) -> None:
    call = await generating(world)
    async with call.open() as response:
        results, request = Results(response), await call.request()
        call.agent.send_item(request, "1-aaaaaa", 0, b"old")
        await results.next()
        call.agent.send_item(request, "2-bbbbbb", 0, b"new")
        call.agent.send_item(request, "1-aaaaaa", 1, b"late")
        call.agent.send_item(request, "2-bbbbbb", 0, b"new")
        await call.end(items=1, attempt="2-bbbbbb")
        found = await results.take(3)
    await call.agent.stop()

    assert [frame.kind for frame in found] == [FrameKind.RESTARTED, FrameKind.ITEM, FrameKind.RESULT]
    assert found[0].meta == {"attempt": "2-bbbbbb"}
    assert found[1].payload == b"new"


async def test_a_lost_item_ends_the_stream_with_an_error(world: World) -> None:
    call = await generating(world)
    async with call.open() as response:
        results, request = Results(response), await call.request()
        call.agent.send_item(request, "1-aaaaaa", 0, b"0")
        call.agent.send_item(request, "1-aaaaaa", 2, b"2")
        found = await results.take(2)
    await call.agent.stop()

    assert [frame.kind for frame in found] == [FrameKind.ITEM, FrameKind.ERROR]
    assert found[1].meta["code"] == "data_loss"
    assert "items 1 to 1" in found[1].meta["message"]


@pytest.mark.slow
async def test_items_that_never_arrived_are_noticed_at_the_end(world: World) -> None:
    call = await generating(world)
    async with call.open() as response:
        results, request = Results(response), await call.request()
        call.agent.send_item(request, "1-aaaaaa", 0, b"0")
        await call.end(items=2)
        found = await results.take(2)
    await call.agent.stop()

    assert [frame.kind for frame in found] == [FrameKind.ITEM, FrameKind.ERROR]


async def test_a_caller_whose_connection_broke_goes_on_where_it_was(world: World) -> None:
    call = await generating(world)
    async with call.open() as response:
        results, request = Results(response), await call.request()
        call.agent.send_item(request, "1-aaaaaa", 0, b"0")
        await results.next()
    await asyncio.sleep(0.3)  # what arrives before the gateway knows that nobody reads is lost with the connection
    call.agent.send_item(request, "1-aaaaaa", 1, b"1")
    async with call.open() as response:
        results = Results(response)
        call.agent.send_item(request, "1-aaaaaa", 2, b"2")
        await call.end(items=3)
        found = await results.take(3)
    await call.agent.stop()

    assert [frame.payload for frame in found[:2]] == [b"1", b"2"]
    assert len(call.agent.seen) == 1


async def test_a_failed_generator_gives_its_items_and_then_its_error(world: World) -> None:
    call = await generating(world)
    async with call.open() as response, asyncio.timeout(10):
        results, request = Results(response), await call.request()
        call.agent.send_item(request, "1-aaaaaa", 0, b"0")
        await call.end(items=1, outcome="failed", error={"kind": "user", "type": "ValueError"})
        found = await results.take(2)
    await call.agent.stop()

    assert [frame.kind for frame in found] == [FrameKind.ITEM, FrameKind.RESULT]
    assert found[1].meta["outcome"] == "failed"


async def test_a_generator_whose_caller_does_not_come_back_is_cancelled(tmp_path: Path) -> None:
    clock = FakeClock(1_000_000_000.0)
    async with a_world(tmp_path, clock=clock) as world:
        call = await generating(world)
        async with call.open() as response:
            results, request = Results(response), await call.request()
            call.agent.send_item(request, "1-aaaaaa", 0, b"0")
            await results.next()

        async def cancelled() -> bool:
            await clock.advance(5)
            return [cancel.call for cancel in call.agent.cancels] == [call.call]

        await eventually(cancelled)
        state = (await world.http.get(f"/v1/calls/{call.call}")).json()["state"]
        await call.agent.stop()
        assert state == "cancelled"
