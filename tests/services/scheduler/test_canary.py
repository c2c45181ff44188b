"""Canaries: every stream is written and read; one that takes nothing is told loudly; nobody else notices them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.services.scheduler.world import World, a_world
from tests.support.clock import FakeClock
from tests.support.eventually import eventually

from squall_bus import Delivery
from squall_bus.js import api
from squall_contracts import subjects
from squall_contracts.health import HEALTH, StreamsChecked, streams_key
from squall_scheduler.canary import AGAIN_S, EVERY_S, QUEUE_TTL_S, TTL_S, Canaries
from squall_scheduler.shard_tail import ShardTail

JOURNAL, RESULTS = subjects.journal_stream("local", 0), subjects.results_stream("local", 0)
WORK = subjects.work_stream("local", 0)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path, shards=1) as world:
        yield world


async def told(world: World) -> StreamsChecked:
    entry = await world.bus.kv(HEALTH).get(streams_key(0))
    assert entry is not None
    return StreamsChecked.decode(entry.value)


def of(world: World, tail: ShardTail) -> tuple[Canaries, FakeClock, dict[str, float]]:
    clock, took = FakeClock(), dict[str, float]()
    return Canaries(world.bus, clock, tail, took), clock, took


async def test_every_stream_and_bucket_has_one_and_their_readers_do_not_see_it(world: World) -> None:
    canaries, _, took = of(world, ShardTail(world.bus, 0))
    await canaries.tick()

    topology = world.bus.topology
    assert took.keys() == {s.name for s in topology.streams} | {f"KV_{b.name}" for b in topology.buckets}
    assert canaries.reason() is None
    assert (await told(world)).failing == {}
    assert TTL_S < EVERY_S
    for stream in (spec for spec in topology.streams if spec.canary and not spec.sources):
        assert (await world.bus.stream_info(stream.name)).messages == 1
        if len(stream.subjects) == 1:
            assert [stored async for stored in world.bus.read(stream.name)] == []
    for bucket in (spec.name for spec in topology.buckets if spec.name != HEALTH):
        assert await world.bus.kv(bucket).entries() == []
    queue = await world.bus.stream_info(WORK, subjects.canaries("local"))
    assert (queue.messages > 0, queue.others) == (True, 0)


async def test_a_queue_keeps_its_canary_until_the_next_so_that_lone_calls_find_its_file(world: World) -> None:
    canaries, _, _ = of(world, ShardTail(world.bus, 0))
    await canaries.tick()
    assert QUEUE_TTL_S > EVERY_S + AGAIN_S
    files = world.server.store.glob(f"data/jetstream/*/streams/{WORK}/msgs/*.blk")
    before = {file.name for file in files}

    pool, done = await world.function(), list[str]()

    def take(delivery: Delivery) -> None:
        done.append(delivery.subject)
        delivery.ack()

    async with await world.bus.pull(WORK, pool, take) as puller:
        for number in range(1, 6):
            puller.want(1)
            await world.call(pool)
            await eventually(lambda: len(done) == number)  # noqa: B023
            await eventually(lambda: empty(world))

    assert {file.name for file in world.server.store.glob(f"data/jetstream/*/streams/{WORK}/msgs/*.blk")} == before


async def empty(world: World) -> bool:
    """Whether its queue holds nothing but canaries."""
    return (await world.bus.stream_info(WORK, subjects.canaries("local"))).others == 0


async def test_a_canary_between_two_inputs_is_no_gap_for_the_reconciler(world: World) -> None:
    tail = ShardTail(world.bus, 0)
    await tail.start()
    await tail.sync()
    canaries, _, _ = of(world, tail)
    pool = await world.function()
    first = await world.call(pool)
    await canaries.tick()
    second = await world.call(pool)
    await eventually(lambda: tail.open.count(pool) == 2)

    assert not tail.behind
    await tail.check_progress()
    await tail.check_progress()
    assert not tail.behind
    await tail.sync()
    assert {key.partition(".")[0] for key in tail.open.all(pool)} == {first, second}
    await tail.close()


async def test_a_real_gap_is_still_noticed_while_a_canary_is_written(world: World) -> None:
    tail = ShardTail(world.bus, 0)
    await tail.start()
    await tail.sync()
    pool = await world.function()
    await world.call(pool)
    await eventually(lambda: tail.open.count(pool) == 1)
    with tail.another() as stored_at:
        stored_at(tail.journal_seq + 1)
        tail.journal_seq -= 2  # as if two inputs had not been heard of
        await world.call(pool)
        await eventually(lambda: tail.open.count(pool) == 2)
    assert tail.behind
    await tail.close()


async def test_a_canary_that_another_scheduler_has_just_written_is_enough(world: World) -> None:
    before, _, _ = of(world, ShardTail(world.bus, 0))
    await before.tick()
    after, _, took = of(world, ShardTail(world.bus, 0))
    await after.tick()

    assert after.reason() is None
    assert took[RESULTS] >= 0


async def test_a_canary_that_does_not_expire_is_a_failure(world: World) -> None:
    canaries, clock, _ = of(world, ShardTail(world.bus, 0))
    await canaries.tick()
    await clock.advance(2_000_000_000)  # past the server's time, where the first round's are as fresh as before
    await canaries.tick()

    assert "should have expired" in canaries.failing[RESULTS]


@pytest.mark.slow
async def test_a_stream_that_takes_nothing_is_told_loudly_until_it_does_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    canaries, clock, took = of(world, ShardTail(world.bus, 0))
    await api(world.bus._link, f"STREAM.DELETE.{RESULTS}")
    await canaries.tick()

    assert canaries.failing.keys() == {RESULTS}
    assert took[RESULTS] == -1
    assert RESULTS in (canaries.reason() or "")
    assert (await told(world)).failing.keys() == {RESULTS}
    failures = [r for r in caplog.records if r.message == "canary_failed"]
    assert [r.levelno for r in failures] == [logging.ERROR]

    await world.bus.ensure_stream(RESULTS)
    await clock.advance(AGAIN_S)
    await canaries.tick()

    assert canaries.reason() is None
    assert any(r.message == "canary_recovered" for r in caplog.records)
