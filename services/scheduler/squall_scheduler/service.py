"""Wiring of the scheduler: watches, the stats subscription, the worker, the clock, the reconcilers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from squall.errors import InvalidError
from squall.ids import new_id
from squall_bus import Bus, Change, connect
from squall_contracts import roles, subjects, topology
from squall_contracts.builds import IMAGES
from squall_contracts.functions import APPS, SPECS
from squall_contracts.nodes import CONTAINERS, NODES
from squall_contracts.scaling import DESIRED, VERDICTS
from squall_scheduler.canary import Canaries
from squall_scheduler.handlers import Scheduler
from squall_scheduler.reconciler import Reconciler
from squall_scheduler.schedules import Schedules
from squall_scheduler.settings import SchedulerSettings
from squall_scheduler.ticking import start_schedules
from squall_service.clock import Clock
from squall_service.health import serve_health
from squall_service.leases import LeaderLease, Leadership
from squall_service.run import ServiceContext
from squall_service.settings import BusConnection
from squall_service.telemetry import log

SYNC_S = 30.0
LEASE = "reconciler"
RECONCILE_S = 1.0
FIRST_CANARY_S = 5.0
"""Not while everything starts."""
WAITING_TICK_S = 0.25
"""While a pool waits for room: containers of others become idle, and may make it."""


async def serve(context: ServiceContext[SchedulerSettings]) -> None:
    """The scheduler as a process of its own."""
    connection, settings = BusConnection.load(), context.settings
    layout = topology.build(connection.region, connection.shards, connection.replicas)
    health = serve_health(
        context.health, context.telemetry.exposition, host=settings.health_host, port=settings.health_port
    )
    async with connect(connection.bus_settings(roles.SCHEDULER), layout) as bus, health:
        await run(settings, bus, context)


async def run(settings: SchedulerSettings, bus: Bus, context: ServiceContext[SchedulerSettings]) -> None:
    """Schedule until the context stops; also in a process shared with other services."""
    bus.keep_memory_streams()
    await bus.await_topology()
    scheduler = Scheduler(bus, context.clock)
    scheduler.facts.machines.shrink_larger = settings.shrink_larger
    scheduler.on_connected()
    stop_listening = bus.on_reconnect(scheduler.on_connected)
    scheduler.metrics.observe(context.telemetry.meter("squall_scheduler"), scheduler.facts)
    context.health.check("bus", lambda: None if bus.connected else "the bus is not connected")
    async with asyncio.timeout(SYNC_S):
        await _watch_all(bus, scheduler, context)
    stats = await bus.subscribe(subjects.all_stats(bus.topology.region), scheduler.on_stats)
    worker = context.start(scheduler.work(), "scheduler worker")
    context.start(_tick(scheduler, settings, context), "scheduler tick")
    reconciling = _start_reconcilers(bus, scheduler, context) if settings.reconcile else []
    scheduler.look_at(*scheduler.facts.pools())
    context.ready()
    # The first containers of a platform that starts need not wait for it.
    ticking = await start_schedules(bus, Schedules(bus, context.clock, scheduler.facts), context)
    await context.stopping.wait()
    stop_listening()
    await stats.close()
    worker.cancel()
    await ticking.close()
    leading = [*reconciling, ticking.leading]
    for task in leading:
        task.cancel()
    await asyncio.wait(leading)  # each gives its lease back


def _start_reconcilers(
    bus: Bus, scheduler: Scheduler, context: ServiceContext[SchedulerSettings]
) -> list[asyncio.Task[None]]:
    """One for each shard, active wherever its lease is."""
    holder = new_id("sc")
    shards = range(bus.topology.shards)
    return [context.start(_reconcile(bus, scheduler, context, n, holder), f"reconciler {n}") for n in shards]


async def _reconcile(
    bus: Bus, scheduler: Scheduler, context: ServiceContext[SchedulerSettings], shard: int, holder: str
) -> None:
    clock = context.clock

    async def lead(leadership: Leadership) -> None:
        reconciler = Reconciler(bus, scheduler.facts, clock, shard, scheduler.metrics.calls)
        canaries = Canaries(bus, clock, reconciler.tail, scheduler.metrics.canaries)
        context.health.check(f"streams of shard {shard}", canaries.reason)
        stop_listening = bus.on_reconnect(reconciler.on_connected)
        await reconciler.tail.start()
        singing = context.start(_sing(canaries, clock), f"canaries {shard}")
        try:
            while leadership.holds():
                await reconciler.tick()
                await clock.sleep(RECONCILE_S)
        finally:
            singing.cancel()
            canaries.close()
            context.health.check(f"streams of shard {shard}", lambda: None)
            stop_listening()
            await reconciler.tail.close()

    await LeaderLease(bus, f"{LEASE}-{subjects.shard_token(shard)}", holder, clock=clock).run(lead)


async def _sing(canaries: Canaries, clock: Clock) -> None:
    """Beside the reconciler: a stream that takes nothing must not keep it from the others."""
    await clock.sleep(FIRST_CANARY_S)
    while True:
        await canaries.tick()
        await clock.sleep(RECONCILE_S)


async def _watch_all(bus: Bus, scheduler: Scheduler, context: ServiceContext[SchedulerSettings]) -> None:
    """Start every watch, and return when each has given what was there: half a view must not place anything."""
    handlers: dict[str, Callable[[Change], None]] = {
        SPECS: scheduler.on_spec,
        APPS: scheduler.on_app,
        IMAGES: scheduler.on_image,
        NODES: scheduler.on_node,
        CONTAINERS: scheduler.on_claim,
        VERDICTS: scheduler.on_verdict,
        DESIRED: scheduler.on_desired,
    }
    synced = []
    for bucket, handler in handlers.items():
        ready = asyncio.Event()
        context.start(_watch(bus, bucket, handler, ready), f"scheduler watch {bucket}")
        synced.append(ready.wait())
    await asyncio.gather(*synced)


async def _watch(bus: Bus, bucket: str, handler: Callable[[Change], None], synced: asyncio.Event) -> None:
    async with bus.kv(bucket).watch() as changes:
        async for change in changes:
            if change.synced:
                synced.set()
                continue
            try:
                handler(change)
            except InvalidError as error:  # one unreadable record must not blind the scheduler for all others
                log.error("record_not_understood", bucket=bucket, key=change.key, reason=error.message)


async def _tick(scheduler: Scheduler, settings: SchedulerSettings, context: ServiceContext[SchedulerSettings]) -> None:
    while True:
        await context.clock.sleep(min(settings.tick_s, WAITING_TICK_S) if scheduler.waiting else settings.tick_s)
        scheduler.on_tick()
