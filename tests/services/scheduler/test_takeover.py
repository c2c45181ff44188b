"""Takeover: where a queue goes on with its journal when the server has forgotten where it stopped."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.services.scheduler.world import SHARDS, World
from tests.support.eventually import eventually

from squall.ids import new_call_id
from squall_bus import Bus, BusSettings, Sourcing, StreamInfo, connect
from squall_contracts import subjects
from squall_scheduler.open_calls import Open, OpenCalls
from squall_scheduler.takeover import Takeover

SHARD = 0
JOURNAL, WORK = subjects.journal_stream("local", SHARD), subjects.work_stream("local", SHARD)
FORGOTTEN = Sourcing(lag=0, seq=0, silent_s=None, error="stream not found")


@dataclass
class Tail:
    """What takeover asks of a shard's tail: everything in the journal is open."""

    open: OpenCalls
    shard: int = SHARD
    journal_seq: int = 0


async def work(world: World) -> StreamInfo:
    return await world.bus.stream_info(WORK, ">")


async def test_what_the_queue_has_is_not_taken_over_a_second_time(world: World) -> None:
    pool = await world.function()
    calls = [await accepted(world, pool) for _ in range(3)]
    await eventually(lambda: taken_over(world, 3))
    tail = Tail(OpenCalls())
    for seq, call in enumerate(calls, start=1):
        tail.open.add(pool, f"{call}.0", Open(deadline=1e12, seq=seq))
    short = tuple(replace(spec, duplicate_window_s=0.1) for spec in world.bus.topology.streams if spec.name == WORK)
    layout = replace(
        world.bus.topology, streams=(*short, *(s for s in world.bus.topology.streams if s.name == JOURNAL))
    )
    async with connect(BusSettings(url=world.server.url, shards=SHARDS), replace(layout, buckets=())) as bus:
        await bus.ensure_topology()
        await eventually(lambda: ids_are_forgotten(bus))
        await goes_on(world, bus, tail, pool)


async def goes_on(world: World, bus: Bus, tail: Tail, pool: str) -> None:
    before = await work(world)

    started = await Takeover(bus, tail).check(replace(before, sources={JOURNAL: FORGOTTEN}), now=0.0)  # type: ignore[arg-type]
    await accepted(world, pool)
    await eventually(lambda: taken_over(world, 4))

    after = await work(world)
    assert not started
    taken = [count for subject, count in after.subjects.items() if pool in subject]
    assert taken == [1] * 4


async def taken_over(world: World, seq: int) -> bool:
    return (await work(world)).sources[JOURNAL].seq == seq


async def ids_are_forgotten(bus: Bus) -> bool:
    """Messages of a queue are known by their ids for a while, so that nothing is taken over twice in that time."""
    subject = subjects.requeue("local", "po-other", new_call_id(1), 0)
    return not (await bus.publish(subject, b"", msg_id="again")).duplicate


async def accepted(world: World, pool: str) -> str:
    """A call of the shard that is looked at."""
    while not (call := new_call_id(SHARDS)).endswith("00"):
        pass
    await world.bus.publish(subjects.call("local", pool, call, 0), b"")
    return call
