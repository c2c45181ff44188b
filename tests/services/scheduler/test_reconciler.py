"""The reconciler on a real bus: whatever happens to a queue, every accepted input ends in a result."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.services.scheduler.world import World, a_world
from tests.support.clock import FakeClock
from tests.support.eventually import eventually

from squall.ids import new_call_id
from squall_bus import Bus, BusSettings, ConsumerSpec, Delivery, Message, connect
from squall_contracts import subjects
from squall_contracts.calls import REQUEUED_HEADER, CallResult
from squall_contracts.letters import DeadLetter
from squall_contracts.nodes import ClaimState, ContainerClaim
from squall_contracts.scaling import Verdict
from squall_contracts.topology import Topology
from squall_scheduler.facts import Facts
from squall_scheduler.policy.reconciling import LEASE_S, PATIENCE_S
from squall_scheduler.reconciler import Reconciler
from squall_scheduler.state import PoolId

WORK, JOURNAL = subjects.work_stream("local", 0), subjects.journal_stream("local", 0)


@dataclass
class Shard:
    """A world with one shard, its reconciler, and a clock that starts at the real time and is turned by hand."""

    world: World
    clock: FakeClock
    facts: Facts
    reconciler: Reconciler
    counts: Counter[str]

    async def after(self, seconds: float) -> None:
        """Let time pass, with a tick a second."""
        for _ in range(round(seconds)):
            await self.clock.advance(1.0)
            await self.reconciler.tick()

    async def queued(self) -> list[str]:
        """Keys of what is in WORK."""
        return [s.split(".", 4)[4] for s in (await self.world.bus.stream_info(WORK, ">")).subjects]

    async def is_queued(self, call: str, index: int = 0) -> bool:
        return f"{call}.{index}" in await self.queued()

    async def accepted(self, pool: str, deadline: float | None = None) -> str:
        """A call that has reached its queue."""
        call = await self.world.call(pool, deadline=deadline)
        await eventually(lambda: self.is_queued(call))
        return call

    async def delivered(self, pool: str) -> Delivery:
        """An agent takes the next input of the pool."""
        taken: list[Delivery] = []
        async with await self.world.bus.pull(WORK, pool, taken.append) as puller:
            puller.want(1)
            await eventually(lambda: bool(taken))
        return taken[0]

    def container(self, pool: str, state: str = ClaimState.READY) -> None:
        """The pool has a container."""
        claim = ContainerClaim(
            pool=pool,
            ordinal=0,
            container="co-1",
            node="node-a",
            function_id="fu-1",
            app_id="ap-1",
            workspace="main",
            state=state,
            created_at=0.0,
            updated_at=0.0,
        )
        self.facts.claim_changed(claim, 1, 0.0)


@pytest.fixture
async def shard(tmp_path: Path) -> AsyncIterator[Shard]:
    async with a_world(tmp_path, shards=1) as world:
        clock = FakeClock(time.time())
        facts, counts = Facts(), Counter[str]()
        reconciler = Reconciler(world.bus, facts, clock, 0, counts)
        await reconciler.tail.start()
        yield Shard(world, clock, facts, reconciler, counts)
        await reconciler.tail.close()


# --- deadlines -------------------------------------------------------------------------------------------------------


async def test_an_input_that_nobody_took_expires_at_its_deadline(shard: Shard) -> None:
    pool = await shard.world.function()
    shard.facts.verdict_changed(PoolId(pool), Verdict(pool=pool, at=0, missing=1, message="no node is alive"))
    call = await shard.accepted(pool, deadline=shard.clock.now() + 5)
    await shard.after(4)
    assert await shard.world.result(call) is None
    await shard.after(2)
    result = await shard.world.result(call)
    assert result is not None
    assert result.outcome == "expired"
    assert result.error is not None
    assert result.error["kind"] == "expired"
    assert "no node is alive" in result.error["message"]
    assert not await shard.queued()
    stored = [each async for each in shard.world.bus.read(subjects.letters_stream("local"))]
    [letter] = [DeadLetter.decode(each.data) for each in stored]
    assert (letter.call, letter.outcome, letter.failed_at) == (call, "expired", result.ended_at)
    await shard.after(2)
    assert await shard.world.result(call) == result


async def test_a_waiting_gateway_is_told_of_the_expiry_with_the_recorded_bytes(shard: Shard) -> None:
    pool = await shard.world.function()
    replies: list[Message] = []
    inbox = shard.world.bus.new_inbox()
    subscription = await shard.world.bus.subscribe(inbox, replies.append)
    call = await shard.world.call(pool, deadline=shard.clock.now() - 1, reply_to=inbox)
    await eventually(lambda: shard.is_queued(call))
    await shard.after(1)
    await eventually(lambda: bool(replies))
    await subscription.close()
    assert CallResult.decode(replies[0].data) == await shard.world.result(call)


async def test_an_input_that_an_agent_has_does_not_expire(shard: Shard) -> None:
    pool = await shard.world.function()
    call = await shard.accepted(pool, deadline=shard.clock.now() + 2)
    await shard.delivered(pool)
    shard.container(pool)
    await shard.after(30)
    assert await shard.world.result(call) is None
    assert await shard.is_queued(call)


async def test_an_input_whose_agent_and_pool_are_gone_expires(shard: Shard) -> None:
    pool = await shard.world.function()
    call = await shard.accepted(pool, deadline=shard.clock.now() + 2)
    await shard.delivered(pool)
    await shard.after(4)
    result = await shard.world.result(call)
    assert result is not None
    assert result.outcome == "expired"


async def test_the_result_of_an_agent_wins_over_an_expiry(shard: Shard) -> None:
    pool = await shard.world.function()
    call = await shard.accepted(pool, deadline=shard.clock.now() + 3)
    await shard.after(1)
    await shard.reconciler.tail.close()  # it does not hear of the result
    await shard.world.finish(pool, call, acknowledge=False)
    await shard.after(4)
    result = await shard.world.result(call)
    assert result is not None
    assert result.outcome == "succeeded"


async def test_hundreds_of_inputs_expire_in_one_tick(shard: Shard) -> None:
    pool = await shard.world.function()
    call = new_call_id(1)
    for index in range(300):
        await shard.world.call(pool, call=call, index=index, deadline=shard.clock.now() + 1)
    await eventually(lambda: shard.is_queued(call, 299))
    await shard.after(3)
    results = await shard.world.bus.stream_info(subjects.results_stream("local", 0))
    assert results.messages == 300
    assert not await shard.queued()
    assert len(shard.reconciler.tail.open) == 0


# --- orphans ---------------------------------------------------------------------------------------------------------


async def test_an_input_in_no_queue_and_without_a_result_is_put_back_after_two_leases(shard: Shard) -> None:
    pool = await shard.world.function()
    call = await shard.accepted(pool)
    await shard.after(1)
    delivery = await shard.delivered(pool)
    delivery.term()  # a stale agent's last word
    await eventually(lambda: missing(shard, call))
    await shard.after(PATIENCE_S)
    assert not await shard.is_queued(call)
    await shard.after(2 * LEASE_S)
    assert await shard.is_queued(call)
    again = await shard.delivered(pool)
    assert again.header(REQUEUED_HEADER) == "1"
    assert again.data == delivery.data
    assert again.subject == delivery.subject


@pytest.mark.slow
async def test_an_input_that_its_queue_has_forgotten_is_put_back(shard: Shard) -> None:
    pool = await shard.world.function()
    call = await shard.accepted(pool)
    filtered = subjects.calls_of_pool("local", 0, pool)
    # The server gives up on a message after its last delivery: it stays, neither to be delivered nor leased.
    await shard.world.bus.ensure_consumer(
        WORK, ConsumerSpec(name=pool, filter_subject=filtered, ack_wait_s=0.2, max_deliver=1)
    )
    await shard.delivered(pool)

    async def forgotten() -> bool:
        consumer = await shard.world.bus.consumer_info(WORK, pool)
        return consumer is not None and (consumer.pending, consumer.ack_pending) == (0, 0)

    await eventually(forgotten)
    assert await shard.is_queued(call)
    await shard.after(PATIENCE_S - 1)
    assert shard.counts["requeued"] == 0
    await shard.after(LEASE_S + 2)
    assert shard.counts["requeued"] == 1
    again = await shard.delivered(pool)
    assert again.subject.endswith(f"{call}.0")
    assert again.header(REQUEUED_HEADER) == "1"


async def test_an_input_that_has_ended_is_not_put_back(shard: Shard) -> None:
    pool = await shard.world.function()
    call = await shard.accepted(pool)
    await shard.after(1)
    await shard.world.finish(pool, call)
    await shard.after(40)
    assert not await shard.queued()
    assert len(shard.reconciler.tail.open) == 0


async def test_an_input_that_is_being_run_is_left_alone(shard: Shard) -> None:
    pool = await shard.world.function()
    call = await shard.accepted(pool)
    await shard.delivered(pool)
    await shard.after(60)
    assert await shard.queued() == [f"{call}.0"]
    assert not shard.counts


async def test_two_reconcilers_put_an_input_back_once(shard: Shard) -> None:
    pool = await shard.world.function()
    call = await shard.accepted(pool)
    other = Reconciler(shard.world.bus, shard.facts, shard.clock, 0, Counter())
    await other.tail.start()
    await shard.world.taken_off(pool, call)
    for _ in range(40):
        await shard.clock.advance(1.0)
        await asyncio.gather(shard.reconciler.tick(), other.tick())
    await other.tail.close()
    assert (await shard.world.bus.stream_info(WORK)).messages == 1


async def test_a_queue_that_was_emptied_is_filled_again(shard: Shard) -> None:
    pool = await shard.world.function()
    calls = [await shard.world.call(pool) for _ in range(300)]
    await eventually(lambda: shard.is_queued(calls[-1]))
    await shard.world.finish(pool, calls[0])
    await shard.after(1)
    await shard.world.bus.purge(WORK, ">")
    await shard.after(4 * LEASE_S)
    assert sorted(await shard.queued()) == sorted(f"{call}.0" for call in calls[1:])


# --- a lost or a wrong queue -----------------------------------------------------------------------------------------


async def test_a_lost_queue_is_made_again_with_only_what_is_not_finished(shard: Shard) -> None:
    pool = await shard.world.function()
    done, waiting = await shard.accepted(pool), await shard.accepted(pool)
    await shard.world.finish(pool, done)
    await shard.after(1)
    await shard.world.bus.request(f"$JS.API.STREAM.DELETE.{WORK}", b"")
    await shard.after(LEASE_S + 1)
    await eventually(lambda: shard.is_queued(waiting))
    assert await shard.world.bus.consumer_info(WORK, pool) is None, "what has ended could be delivered"
    await shard.after(3)
    assert await shard.queued() == [f"{waiting}.0"]
    assert (await shard.delivered(pool)).subject.endswith(f"{waiting}.0")


async def test_a_lost_queue_is_made_again_also_when_something_is_due_and_the_server_was_just_restarted(
    shard: Shard,
) -> None:
    pool = await shard.world.function()
    due = await shard.accepted(pool, deadline=shard.clock.now() + 2)
    waiting = await shard.accepted(pool)
    await shard.after(1)
    await shard.world.bus.request(f"$JS.API.STREAM.DELETE.{WORK}", b"")
    shard.reconciler.on_connected()
    await shard.after(2)
    await eventually(lambda: shard.is_queued(waiting))
    await shard.after(1)
    await eventually(lambda: shard.world.result(due))


async def test_ended_inputs_that_came_back_are_taken_out_after_a_reconnect(shard: Shard) -> None:
    pool = await shard.world.function()
    ended, waiting = await shard.accepted(pool), await shard.accepted(pool)
    await shard.after(1)
    await shard.world.finish(pool, ended, acknowledge=False)  # its acknowledgement was lost with the server
    shard.reconciler.on_connected()
    await shard.after(1)
    assert await shard.queued() == [f"{waiting}.0"]
    await shard.after(1)
    assert await shard.queued() == [f"{waiting}.0"]


async def test_an_unreadable_input_that_came_back_is_taken_out_too(shard: Shard) -> None:
    pool = await shard.world.function()
    ended, waiting = new_call_id(1), new_call_id(1)
    for call in (ended, waiting):
        await shard.world.bus.publish(subjects.call("local", pool, call, 0), b"no message of ours", ttl_s=3600)
        await eventually(lambda call=call: shard.is_queued(call))
    await shard.after(1)
    await shard.world.finish(pool, ended, acknowledge=False)  # by an agent; its acknowledgement was lost
    shard.reconciler.on_connected()
    await shard.after(1)
    assert await shard.queued() == [f"{waiting}.0"]


async def test_what_was_accepted_while_nobody_listened_is_found(shard: Shard) -> None:
    pool = await shard.world.function()
    before = await shard.accepted(pool, deadline=shard.clock.now() + 40)
    await shard.after(1)
    await shard.reconciler.tail.close()
    missed = await shard.accepted(pool, deadline=shard.clock.now() + 40)
    await shard.after(2 * LEASE_S + 2)
    assert set(shard.reconciler.tail.open.all(pool)) == {f"{before}.0", f"{missed}.0"}


async def test_a_gap_in_what_is_heard_leads_to_a_look_at_the_streams(shard: Shard) -> None:
    pool = await shard.world.function()
    await shard.accepted(pool)
    await shard.after(1)
    missed = shard.reconciler.tail.on_arrived
    heard: list[Message] = []
    await shard.reconciler.tail.close()
    subscription = await shard.world.bus.subscribe(subjects.every_arrival("local", 0), heard.append)
    first, second = await shard.accepted(pool), await shard.accepted(pool)
    await eventually(lambda: len(heard) == 2)
    await subscription.close()
    missed(heard[1])
    assert shard.reconciler.tail.behind
    await shard.after(1)
    assert shard.reconciler.tail.open.count(pool) == 3
    assert {f"{first}.0", f"{second}.0"} <= set(shard.reconciler.tail.open.all(pool))


async def test_after_a_crash_of_the_server_every_input_is_in_its_queue_or_has_a_result(shard: Shard) -> None:
    pool = await shard.world.function()
    calls = [await shard.accepted(pool) for _ in range(40)]
    await shard.after(1)
    for call in calls[:20]:
        await shard.world.finish(pool, call)
    await shard.world.server.restart()
    await eventually(lambda: shard.world.bus.connected)
    shard.reconciler.on_connected()
    await shard.after(5 * LEASE_S)
    assert sorted(await shard.queued()) == sorted(f"{call}.0" for call in calls[20:])


async def test_a_queue_that_the_server_does_not_fill_for_a_while_is_filled_at_once(shard: Shard) -> None:
    await make_queue_before_journal(shard)
    pool = await shard.world.function()
    waiting = [await shard.world.call(pool) for _ in range(3)]
    stood_still = await shard.queued()

    shard.reconciler.on_connected()
    await shard.after(2)

    await eventually(lambda: all_queued(shard, waiting))
    assert stood_still == []


async def make_queue_before_journal(shard: Shard) -> None:
    """As a restarted server may recover them: it then waits 12 s before it begins to fill the queue."""
    bus, server = shard.world.bus, shard.world.server
    for stream in (WORK, JOURNAL):
        await bus.request(f"$JS.API.STREAM.DELETE.{stream}", b"")
    queue = tuple(spec for spec in bus.topology.streams if spec.name == WORK)
    async with connect(BusSettings(url=server.url), Topology("local", 1, queue, ())) as early:
        await early.ensure_topology()
        await eventually(lambda: has_given_up(early))
    await bus.ensure_topology()


async def has_given_up(bus: Bus) -> bool:
    return "not found" in (await bus.stream_info(WORK)).sources[JOURNAL].error


async def all_queued(shard: Shard, calls: list[str]) -> bool:
    return sorted(await shard.queued()) == sorted(f"{call}.0" for call in calls)


async def missing(shard: Shard, call: str) -> bool:
    return not await shard.is_queued(call)
