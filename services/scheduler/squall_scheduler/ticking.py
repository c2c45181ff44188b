"""Ticking: what keeps schedules going in one scheduler: its part of the ticks, and the lease of the leader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from squall.errors import InvalidError
from squall.ids import new_id
from squall_bus import Bus, BusError, ConsumerSpec, Delivery, Puller
from squall_contracts import subjects
from squall_contracts.schedules import SCHEDULES
from squall_scheduler.schedules import Schedules
from squall_service.clock import Clock
from squall_service.leases import LeaderLease, Leadership
from squall_service.run import ServiceContext
from squall_service.telemetry import log

LEASE = "schedules"
CONSUMER = "ticks"
ACK_WAIT_S = 5.0
"""Of a tick whose scheduler died: long for a few writes, short for whoever waits for the call."""
AT_ONCE = 64
TICK_S = 0.5
SYNC_S = 30.0


@dataclass(frozen=True, slots=True)
class Ticking:
    """What runs."""

    puller: Puller
    leading: asyncio.Task[None]

    async def close(self) -> None:
        """Take no more ticks."""
        await self.puller.close()


async def start_schedules(bus: Bus, schedules: Schedules, context: ServiceContext[Any]) -> Ticking:
    """Follow the records, take ticks, and lead where no other scheduler does."""
    synced = asyncio.Event()
    context.start(_watch(bus, schedules, synced.set), f"scheduler watch {SCHEDULES}")
    async with asyncio.timeout(SYNC_S):
        await synced.wait()
    region = bus.topology.region
    stream = subjects.schedules_stream(region)
    every_fire = subjects.every_fire(region)
    wanted = ConsumerSpec(name=CONSUMER, filter_subject=every_fire, ack_wait_s=ACK_WAIT_S, prioritized=False)
    await bus.ensure_consumer(stream, wanted)
    puller = await _take(bus, stream, schedules, context)
    lease = LeaderLease(bus, LEASE, new_id("sc"), clock=context.clock)
    leading = context.start(lease.run(lambda term: _lead(schedules, term, context.clock)), "scheduler schedules")
    return Ticking(puller, leading)


async def _take(bus: Bus, stream: str, schedules: Schedules, context: ServiceContext[Any]) -> Puller:
    running: set[asyncio.Task[None]] = set()

    def on_delivery(delivery: Delivery) -> None:
        task = context.start(_one(schedules, delivery), f"tick {delivery.subject}")
        running.add(task)
        task.add_done_callback(on_ended)

    def on_ended(task: asyncio.Task[None]) -> None:
        running.discard(task)
        puller.want(AT_ONCE - len(running))

    puller = await bus.pull(stream, CONSUMER, on_delivery, group=None)
    puller.want(AT_ONCE)
    return puller


async def _one(schedules: Schedules, delivery: Delivery) -> None:
    """One tick; what fails is delivered again."""
    try:
        await schedules.on_fire(delivery)
    except (BusError, InvalidError) as error:
        log.warning("tick_not_decided", subject=delivery.subject, reason=error.message)


async def _lead(schedules: Schedules, term: Leadership, clock: Clock) -> None:
    while term.holds():
        try:
            await schedules.tick()
        except BusError as error:
            log.warning("schedules_not_seen_to", reason=error.message)
        await clock.sleep(TICK_S)


async def _watch(bus: Bus, schedules: Schedules, synced: Callable[[], None]) -> None:
    async with bus.kv(SCHEDULES).watch() as changes:
        async for change in changes:
            if change.synced:
                synced()
                continue
            try:
                schedules.on_schedule(change)
            except InvalidError as error:  # one unreadable record must not blind the scheduler for all others
                log.error("record_not_understood", bucket=SCHEDULES, key=change.key, reason=error.message)
