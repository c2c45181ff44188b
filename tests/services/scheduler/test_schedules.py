"""Schedules on a real bus: one call for each tick, whoever makes it; pauses, deploys, stops and clocks that jump."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.services.scheduler.world import World, a_bus, a_world
from tests.support.eventually import eventually

from squall.ids import CALL_ID, created_at
from squall.spec import ScheduleSpec
from squall_bus import Bus
from squall_contracts import subjects
from squall_contracts.calls import CallRequested
from squall_contracts.functions import APPS, AppRecord
from squall_contracts.schedules import SCHEDULES, ScheduleRecord, call_of_tick, generation_of
from squall_scheduler import service as scheduler_service
from squall_scheduler.settings import SchedulerSettings
from squall_service.clock import SystemClock
from squall_service.run import Running, Service, ServiceContext, start

pytestmark = pytest.mark.slow

EVERY_SECOND = ScheduleSpec(seconds=1.0)
DAILY = ScheduleSpec(cron="0 6 * * *")


class ShiftedClock(SystemClock):
    """The machine's clock, put forward or back."""

    def __init__(self) -> None:
        self.shift_s = 0.0

    def now(self) -> float:
        return super().now() + self.shift_s


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield world


@contextlib.asynccontextmanager
async def another_scheduler(world: World) -> AsyncIterator[Running]:
    """With a connection of its own."""
    async with a_bus(world.server, "second") as bus:

        async def main(context: ServiceContext[SchedulerSettings]) -> None:
            await scheduler_service.run(SchedulerSettings(), bus, context)

        service = Service(name="scheduler", main=main, settings=SchedulerSettings(), grace_s=5)
        async with start(service, clock=world.clock) as running:
            yield running


async def calls(bus: Bus) -> list[CallRequested]:
    """Every call in the journal, in the order of their ticks."""
    found = []
    for shard in range(bus.topology.shards):
        async for stored in bus.read(subjects.journal_stream("local", shard)):
            found.append(CallRequested.decode(stored.data))  # noqa: PERF401 - two loops
    return sorted(found, key=lambda call: created_at(call.call))


async def record(world: World) -> ScheduleRecord | None:
    entries = await world.bus.kv(SCHEDULES).entries()
    return ScheduleRecord.decode(entries[0].value) if entries else None


async def there(world: World) -> ScheduleRecord:
    return await eventually(lambda: record(world))


async def put(world: World, **changes: Any) -> ScheduleRecord:
    """What a gateway (or an earlier life of a scheduler) has written."""
    [entry] = await world.bus.kv(SCHEDULES).entries()
    changed = replace(ScheduleRecord.decode(entry.value), **changes)
    await world.bus.kv(SCHEDULES).put(entry.key, changed.encode())
    return changed


async def set_app(world: World, **changes: Any) -> None:
    entry = await world.bus.kv(APPS).get("ap-1")
    assert entry is not None
    await world.bus.kv(APPS).put("ap-1", replace(AppRecord.decode(entry.value), **changes).encode())


def ticks_are_whole(made: list[CallRequested], told: ScheduleRecord) -> None:
    """Each decided tick is one call or is written down as missed; no call is of two ticks."""
    by_call = Counter(call.call for call in made)
    assert set(by_call.values()) <= {1}
    assert told.called == len(made)
    assert round(told.handled - told.since) == told.called + told.missed


async def test_each_tick_is_one_call_with_two_schedulers_one_of_which_is_killed(world: World) -> None:
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(world.scheduler())
        async with another_scheduler(world):
            await world.function(schedule=EVERY_SECOND)
            await eventually(lambda: enough(world.bus, 3))
            await first.stop()
            before = len(await calls(world.bus))
            await eventually(lambda: enough(world.bus, before + 3), within_s=20)
        told = await there(world)

    made = await calls(world.bus)
    ticks_are_whole(made, told)
    assert all(CALL_ID.fullmatch(call.call) and call.kind == "spawn" for call in made)
    for call in made:
        due_at = round(created_at(call.call) - told.since)
        assert call.call == call_of_tick(told, round(told.since + due_at, 3), world.bus.topology.shards)
        assert call.accepted_at >= created_at(call.call) - 0.001, "a tick came early"


async def enough(bus: Bus, number: int) -> bool:
    return len(await calls(bus)) >= number


async def test_a_tick_that_is_delivered_twice_or_was_made_before_a_crash_is_one_call(world: World) -> None:
    async with world.scheduler():
        await world.function(schedule=EVERY_SECOND)
        await eventually(lambda: enough(world.bus, 1))
    told = await there(world)
    made = len(await calls(world.bus))
    # As after a crash between the call and the note that it was made: the same tick is decided again.
    await put(world, handled=told.handled - 1, called=told.called - 1)

    async with world.scheduler():
        await eventually(lambda: enough(world.bus, made + 1))
    told = await there(world)
    assert len({call.call for call in await calls(world.bus)}) == len(await calls(world.bus))
    assert told.called <= len(await calls(world.bus)) <= told.called + told.missed


async def test_a_schedule_ticks_after_it_was_lost_on_the_bus(world: World) -> None:
    """The leader decides what is overdue, whatever became of the message."""
    async with world.scheduler():
        await world.function(schedule=EVERY_SECOND)
        told = await there(world)
        await world.bus.purge(subjects.schedules_stream("local"), subjects.schedule("local", told.schedule_id))
        await eventually(lambda: enough(world.bus, 2), within_s=20)


async def test_after_a_stop_nothing_ticks_and_nothing_is_left(world: World) -> None:
    async with world.scheduler():
        await world.function(schedule=EVERY_SECOND)
        await eventually(lambda: enough(world.bus, 1))
        await set_app(world, state="stopped")
        stopped_at = world.clock.now()
        await eventually(lambda: nothing_left(world))
    assert all(created_at(call.call) <= stopped_at for call in await calls(world.bus))


async def nothing_left(world: World) -> bool:
    info = await world.bus.stream_info(subjects.schedules_stream("local"), "sched.local.>")
    return await record(world) is None and not info.subjects


async def test_a_deploy_that_leaves_the_schedule_as_it_is_does_not_begin_it_anew(world: World) -> None:
    every_hour = ScheduleSpec(hours=1)
    async with world.scheduler():
        await world.function(schedule=every_hour)
        first = await there(world)
        await world.function(schedule=every_hour, version=2, timeout_s=7.0)
        await asyncio.sleep(1.2)  # two rounds of the leader
        assert await record(world) == first

        await world.function(schedule=DAILY, version=3)
        changed = await eventually(lambda: of_generation(world, generation_of(DAILY)))
        assert changed.since > first.since


async def of_generation(world: World, generation: str) -> ScheduleRecord | None:
    found = await record(world)
    return found if found is not None and found.generation == generation else None


async def test_a_tick_runs_the_version_that_is_present_then(world: World) -> None:
    async with world.scheduler():
        await world.function(schedule=EVERY_SECOND)
        await eventually(lambda: enough(world.bus, 1))
        pool = await world.function(schedule=EVERY_SECOND, version=2, timeout_s=7.0)
        await eventually(lambda: of_pool(world.bus, pool))


async def of_pool(bus: Bus, pool: str) -> bool:
    return any(call.pool == pool for call in await calls(bus))


async def test_a_paused_schedule_is_silent_and_makes_up_for_nothing(world: World) -> None:
    async with world.scheduler():
        await world.function(schedule=EVERY_SECOND)
        await eventually(lambda: enough(world.bus, 1))
        await put(world, paused=True)
        paused_at = world.clock.now()
        await asyncio.sleep(2.5)
        assert all(created_at(call.call) <= paused_at + 0.5 for call in await calls(world.bus))
        resumed_at = world.clock.now()
        before = len(await calls(world.bus))
        await put(world, paused=False, handled=resumed_at, next_tick=0.0)
        await eventually(lambda: enough(world.bus, before + 1))
    made = await calls(world.bus)
    assert [call for call in made if paused_at + 0.5 < created_at(call.call) <= resumed_at] == []
    told = await there(world)
    assert told.missed == 0


async def test_ticks_of_a_time_without_schedulers_are_missed_but_for_the_latest(world: World) -> None:
    async with world.scheduler():
        await world.function(schedule=ScheduleSpec(minutes=1))
        told = await there(world)
    # As if it had been made three minutes and a bit earlier, and nobody had been there since.
    early = told.since - 190
    await put(world, since=early, handled=early, next_tick=early + 60)

    async with world.scheduler():
        await eventually(lambda: enough(world.bus, 1))
    told = await there(world)
    assert (told.called, told.missed) == (1, 2)
    assert [round(tick - early) for tick, _, _ in told.recent] == [180, 120, 60]
    assert [bool(call) for _, _, call in told.recent] == [True, False, False]


@pytest.mark.parametrize("shift_s", [-3600.0, 3600.0])
async def test_a_clock_that_jumps_repeats_no_tick_and_makes_no_burst(world: World, shift_s: float) -> None:
    clock = ShiftedClock()
    world.clock = clock
    async with world.scheduler():
        await world.function(schedule=EVERY_SECOND)
        await eventually(lambda: enough(world.bus, 2))
        before = await calls(world.bus)
        clock.shift_s = shift_s
        if shift_s > 0:
            await eventually(lambda: enough(world.bus, len(before) + 2), within_s=20)
        else:
            await asyncio.sleep(3.0)
    made = await calls(world.bus)
    told = await there(world)

    assert len({call.call for call in made}) == len(made)
    if shift_s > 0:
        assert told.called == len(made)
        assert told.missed > 900, "an hour of ticks was skipped"
        assert len(made) < 20
    else:
        assert len(made) <= len(before) + 1, "there are no ticks until the clock is where it was"


async def test_a_function_without_a_schedule_and_an_unreadable_record_disturb_nothing(world: World) -> None:
    await world.bus.kv(SCHEDULES).put("sc-broken", b"\xc1")
    async with world.scheduler():
        await world.function("plain", app="ap-2")
        await world.function(schedule=EVERY_SECOND)
        await eventually(lambda: enough(world.bus, 1))
