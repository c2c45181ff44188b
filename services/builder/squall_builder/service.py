"""Wiring of the builder: the queue of requests, and as many builds at a time as the settings allow."""

from __future__ import annotations

import asyncio

from squall.errors import ImageBuildError
from squall.ids import new_id
from squall_builder.engine import Engine
from squall_builder.handlers import ACK_WAIT_S, Builder
from squall_builder.pruning import Pruner
from squall_builder.settings import BuilderSettings
from squall_bus import Bus, BusError, ConsumerSpec, Delivery, connect
from squall_contracts import roles, subjects, topology
from squall_service.clock import Clock
from squall_service.health import serve_health
from squall_service.run import ServiceContext
from squall_service.sealing import Sealer
from squall_service.settings import BusConnection
from squall_service.telemetry import log

CONSUMER = "builder"
SWEEP_S = 300.0


async def serve(context: ServiceContext[BuilderSettings]) -> None:
    """The builder as a process of its own."""
    connection, settings = BusConnection.load(), context.settings
    layout = topology.build(connection.region, connection.shards, connection.replicas)
    health = serve_health(
        context.health, context.telemetry.exposition, host=settings.health_host, port=settings.health_port
    )
    async with connect(connection.bus_settings(roles.BUILDER), layout) as bus, health:
        await run(settings, bus, context, connection.url)


async def run(settings: BuilderSettings, bus: Bus, context: ServiceContext[BuilderSettings], bus_url: str = "") -> None:
    """Build until the context stops; also in a process shared with other services."""
    await bus.await_topology()
    region = bus.topology.region
    stream = subjects.builds_stream(region)
    every_build = subjects.build(region, ">")
    await bus.ensure_consumer(stream, ConsumerSpec(name=CONSUMER, filter_subject=every_build, ack_wait_s=ACK_WAIT_S))
    engine = await asyncio.to_thread(Engine, settings, bus_url)
    builder = Builder(bus, context.clock, engine, new_id("bu"), Sealer(settings.secrets_key))
    builder.metrics.observe(context.telemetry.meter("squall_builder"), lambda: len(builder.building))
    context.health.check("bus", lambda: None if bus.connected else "the bus is not connected")
    running: set[asyncio.Task[None]] = set()

    def on_delivery(delivery: Delivery) -> None:
        task = context.start(_one(builder, delivery), f"build {delivery.subject}")
        running.add(task)
        task.add_done_callback(on_ended)

    def on_ended(task: asyncio.Task[None]) -> None:
        running.discard(task)
        puller.want(settings.concurrency - len(running))

    pruning = await Pruner(bus, context.clock, engine, builder).listen(context)
    puller = await bus.pull(stream, CONSUMER, on_delivery)
    puller.want(settings.concurrency)
    if settings.formats != "environments":
        context.start(_sweep(engine, context.clock), "sweep of layers")
    context.ready()
    await context.stopping.wait()
    await pruning.close()
    await puller.close()
    await _drain(running, settings.drain_s)


async def _sweep(engine: Engine, clock: Clock) -> None:
    while True:
        try:
            freed = await engine.sweep(clock.now())
        except (OSError, ImageBuildError) as error:
            log.warning("layers_not_swept", reason=str(error))
        else:
            if freed.layers:
                log.info("layers_removed", images=len(freed.images), layers=len(freed.layers), bytes=freed.bytes)
        await clock.sleep(SWEEP_S)


async def _one(builder: Builder, delivery: Delivery) -> None:
    """One build; the bus's errors end it, not the builder: the request comes again."""
    try:
        await builder.on_build_requested(delivery)
    except* BusError as errors:
        log.warning("build_interrupted", subject=delivery.subject, reason=repr(errors.exceptions))


async def _drain(running: set[asyncio.Task[None]], within_s: float) -> None:
    """Let builds end; what takes longer is handed back."""
    if not running:
        return
    _, late = await asyncio.wait(running, timeout=within_s)
    for task in late:
        task.cancel()
    if late:
        log.info("builds_handed_back", builds=len(late))
        await asyncio.wait(late)
