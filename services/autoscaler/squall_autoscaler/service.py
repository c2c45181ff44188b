"""Wiring of the autoscaler: watches, the waker that every instance runs, and the ticks that only the leader runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from squall.errors import InvalidError
from squall.ids import new_id
from squall_autoscaler.handlers import Autoscaler
from squall_autoscaler.settings import AutoscalerSettings
from squall_autoscaler.waking import Waker
from squall_bus import Bus, Change, Message, connect
from squall_contracts import roles, subjects, topology
from squall_contracts.functions import APPS, SPECS
from squall_contracts.nodes import CONTAINERS
from squall_contracts.scaling import DESIRED, VERDICTS
from squall_service.health import serve_health
from squall_service.leases import LeaderLease, Leadership
from squall_service.run import ServiceContext
from squall_service.settings import BusConnection
from squall_service.telemetry import log

SYNC_S = 30.0
LEASE = "autoscaler"


async def serve(context: ServiceContext[AutoscalerSettings]) -> None:
    """The autoscaler as a process of its own."""
    connection, settings = BusConnection.load(), context.settings
    layout = topology.build(connection.region, connection.shards, connection.replicas)
    health = serve_health(
        context.health, context.telemetry.exposition, host=settings.health_host, port=settings.health_port
    )
    async with connect(connection.bus_settings(roles.AUTOSCALER), layout) as bus, health:
        await run(settings, bus, context)


async def run(settings: AutoscalerSettings, bus: Bus, context: ServiceContext[AutoscalerSettings]) -> None:
    """Decide until the context stops; also in a process shared with other services."""
    await bus.await_topology()
    autoscaler = Autoscaler(bus, context.clock)
    waker = Waker(bus, context.start, autoscaler.do_wake, autoscaler.check_once)
    autoscaler.metrics.observe(context.telemetry.meter("squall_autoscaler"), autoscaler.facts)
    context.health.check("bus", lambda: None if bus.connected else "the bus is not connected")
    async with asyncio.timeout(SYNC_S):
        await _watch_all(bus, autoscaler, context)
    stats = await bus.subscribe(subjects.all_stats(bus.topology.region), autoscaler.on_stats)
    demand = await bus.subscribe(
        subjects.all_demand(bus.topology.region), lambda message: _on_demand(autoscaler, context, message)
    )
    listening = context.start(_listen(autoscaler, waker), "autoscaler listening")
    context.start(waker.work(), "autoscaler waker")
    lease = LeaderLease(bus, LEASE, new_id("as"), clock=context.clock)

    async def lead(leadership: Leadership) -> None:
        await _lead(autoscaler, settings, context, leadership)

    leading = context.start(lease.run(lead), "autoscaler leader")
    context.ready()
    await context.stopping.wait()
    leading.cancel()
    listening.cancel()
    await asyncio.wait([leading, listening])
    await waker.close()
    await stats.close()
    await demand.close()


def _on_demand(autoscaler: Autoscaler, context: ServiceContext[AutoscalerSettings], message: Message) -> None:
    if pool := autoscaler.on_demand(message):
        context.start(autoscaler.do_wake_for_web(pool), f"wake {pool} for the web")


async def _listen(autoscaler: Autoscaler, waker: Waker) -> None:
    """Keep the waker listening for exactly the pools at zero."""
    while True:
        await autoscaler.news.wait()
        autoscaler.news.clear()
        while autoscaler.changed:
            pool = autoscaler.changed.pop()
            waker.listen(pool, autoscaler.at_zero(pool))


async def _lead(
    autoscaler: Autoscaler,
    settings: AutoscalerSettings,
    context: ServiceContext[AutoscalerSettings],
    leadership: Leadership,
) -> None:
    """The leader's clock: every pool each tick, hot ones in between."""
    next_full = 0.0
    autoscaler.leading = True
    try:
        while leadership.holds():
            if context.clock.monotonic() >= next_full:
                next_full = context.clock.monotonic() + settings.tick_s
                await autoscaler.tick()
            elif autoscaler.hot:
                await autoscaler.tick(list(autoscaler.hot))
            await _pause(autoscaler, settings, next_full - context.clock.monotonic())
    finally:
        autoscaler.leading = False
        autoscaler.hot.clear()


async def _pause(autoscaler: Autoscaler, settings: AutoscalerSettings, until_full_s: float) -> None:
    """Until the next tick is due; a pool that becomes hot ends a long pause."""
    autoscaler.stirred.clear()
    if autoscaler.hot:
        await asyncio.sleep(min(settings.hot_tick_s, max(0.0, until_full_s)))
        return
    try:
        async with asyncio.timeout(max(0.0, until_full_s)):
            await autoscaler.stirred.wait()
    except TimeoutError:
        return


async def _watch_all(bus: Bus, autoscaler: Autoscaler, context: ServiceContext[AutoscalerSettings]) -> None:
    """Start every watch, and return when each has given what was there."""
    handlers: dict[str, Callable[[Change], None]] = {
        SPECS: autoscaler.on_spec,
        APPS: autoscaler.on_app,
        CONTAINERS: autoscaler.on_claim,
        VERDICTS: autoscaler.on_verdict,
        DESIRED: autoscaler.on_desired,
    }
    synced = []
    for bucket, handler in handlers.items():
        ready = asyncio.Event()
        context.start(_watch(bus, bucket, handler, ready), f"autoscaler watch {bucket}")
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
            except InvalidError as error:  # one unreadable record must not blind the autoscaler for all others
                log.error("record_not_understood", bucket=bucket, key=change.key, reason=error.message)
