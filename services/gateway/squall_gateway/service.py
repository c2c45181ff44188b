"""Wiring of the gateway: everything is built here, started here, and drained here."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from squall.errors import SquallError
from squall.http_api.routes import Route
from squall_bus import Bus, BusError, connect
from squall_contracts import roles, topology
from squall_gateway import app as application
from squall_gateway.accept import Acceptor
from squall_gateway.api.apps import AppRoutes
from squall_gateway.api.blobs import BlobRoutes
from squall_gateway.api.calls import CallRoutes
from squall_gateway.api.cancels import CancelRoutes
from squall_gateway.api.commands import CommandRoutes
from squall_gateway.api.entries import EntryRoutes
from squall_gateway.api.entries_together import TogetherRoutes
from squall_gateway.api.environments import EnvironmentRoutes
from squall_gateway.api.fleet import FleetRoutes
from squall_gateway.api.functions import FunctionRoutes
from squall_gateway.api.history import HistoryRoutes
from squall_gateway.api.images import ImageRoutes
from squall_gateway.api.json_calls import JsonCallRoutes
from squall_gateway.api.json_outputs import JsonOutputRoutes
from squall_gateway.api.letters import LetterRoutes
from squall_gateway.api.logs import LogRoutes
from squall_gateway.api.maps import MapRoutes
from squall_gateway.api.objects import ObjectRoutes
from squall_gateway.api.schedules import ScheduleRoutes
from squall_gateway.api.secrets import SecretRoutes
from squall_gateway.api.spawns import SpawnRoutes
from squall_gateway.api.tokens import TokenRoutes
from squall_gateway.api.versions import VersionRoutes
from squall_gateway.api.volume_blocks import VolumeBlockRoutes
from squall_gateway.api.volumes import VolumeRoutes
from squall_gateway.api.webhooks import WebhookRoutes
from squall_gateway.apps import Apps
from squall_gateway.auth import Tokens
from squall_gateway.blob_places import BlobPlaces
from squall_gateway.blobs import Blobs
from squall_gateway.bulk_cancels import BulkCancels
from squall_gateway.caller_spans import TICK_S, CallerSpans
from squall_gateway.cancels import Cancels
from squall_gateway.collecting import Collector
from squall_gateway.commands import NodeCommands
from squall_gateway.condition import CHECK_EVERY_S, Condition
from squall_gateway.dicts import Dicts
from squall_gateway.directory import Directory
from squall_gateway.edge import VERSION, App, Edge, Handler
from squall_gateway.environments import Environments, in_words
from squall_gateway.fleet import Fleet
from squall_gateway.generators import Generators
from squall_gateway.history import History
from squall_gateway.idempotency import IdempotencyKeys
from squall_gateway.image_records import ImageRecords
from squall_gateway.image_sources import ImageSources
from squall_gateway.images import Images
from squall_gateway.json_answers import JsonValues
from squall_gateway.json_requests import JsonRequests
from squall_gateway.large_results import ResultAnswers
from squall_gateway.letters import Letters
from squall_gateway.load import Loads
from squall_gateway.logs import Logs
from squall_gateway.metrics import Requests
from squall_gateway.objects import Objects
from squall_gateway.pinning import Pinning
from squall_gateway.policy.admission import Limits
from squall_gateway.pools import Pools
from squall_gateway.pruning import Pruning
from squall_gateway.queues import Queues
from squall_gateway.redrives import Redriving
from squall_gateway.results import Results
from squall_gateway.scaling import Scaling
from squall_gateway.schedules import Schedules
from squall_gateway.secrets import Secrets
from squall_gateway.server import listen, serving, url_of
from squall_gateway.settings import GatewaySettings
from squall_gateway.stopping import SWEEP_S, TIDY_S, Stopping
from squall_gateway.targets import Targets
from squall_gateway.trace_owners import TraceOwners
from squall_gateway.traces import Traces
from squall_gateway.variants import Variants
from squall_gateway.versions import Versions
from squall_gateway.volume_blocks import Rooms
from squall_gateway.volumes import Volumes
from squall_gateway.waiting import Waiting
from squall_gateway.waits import Waits
from squall_gateway.web.addresses import Addresses
from squall_gateway.web.door import DoorParts, WebDoor
from squall_gateway.web.history import WebHistory
from squall_gateway.web.name_claims import NameClaims
from squall_gateway.web.records import WebRecords
from squall_gateway.web.routes import TELL_S, Routes
from squall_gateway.web.sockets import OpenSockets
from squall_gateway.webhooks.containers import ContainerHooks
from squall_gateway.webhooks.looking import Webhooks
from squall_gateway.webhooks.sending import Sending
from squall_gateway.webhooks.signing import Signing
from squall_gateway.webhooks.users import WebhookUsers, rules_of
from squall_service.run import ServiceContext
from squall_service.sealing import Sealer
from squall_service.settings import BusConnection
from squall_service.telemetry import TelemetrySettings, log

if TYPE_CHECKING:
    from squall_gateway.otlp import OtlpExport

SYNC_S = 30.0
WAITS_EVERY_S = 1.0


async def serve(context: ServiceContext[GatewaySettings]) -> None:
    """The gateway as a process of its own."""
    connection = BusConnection.load()
    layout = topology.build(connection.region, connection.shards, connection.replicas)
    async with connect(connection.bus_settings(roles.GATEWAY), layout) as bus:
        # What is loaded now stays, and a call leaves few cycles: as in the agent, collecting less often is cheaper.
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        await run(context.settings, bus, context)


async def run(settings: GatewaySettings, bus: Bus, context: ServiceContext[Any]) -> None:
    """Answer requests until the context stops; also in a process shared with other services."""
    listener = listen(settings.host, settings.port)
    try:
        await bus.await_topology()
        gateway = Gateway(settings, bus, context)
        await gateway.run(listener)
    finally:
        listener.close()


class Gateway:
    """All parts of one gateway, put together."""

    def __init__(self, settings: GatewaySettings, bus: Bus, context: ServiceContext[Any]) -> None:
        self.settings = settings
        self.bus = bus
        self.context = context
        self.version = VERSION
        self.draining = asyncio.Event()
        self.requests = Requests()
        self.limits = Limits(
            pending=settings.max_pending,
            pending_sync=settings.max_pending_sync,
            payload_bytes=settings.max_payload_bytes,
        )
        clock = context.clock
        store = Blobs(
            settings.blobs, settings.blob_options, settings.max_payload_bytes, reserve_bytes=settings.reserve_mib << 20
        )
        self.blobs = BlobPlaces(store)
        self.directory = Directory(bus)
        self.fleet = Fleet(bus)
        self.waiting = Waiting(self.fleet)
        self.results = Results(bus, clock)
        self.routes = Routes(bus, self.fleet, self.waiting)
        self.addresses = Addresses(self.directory.web, settings.web_url)
        self.waits = Waits(bus, context.start)
        self.caller_spans = CallerSpans(bus, clock)
        self.condition = Condition(
            bus, store, clock, bus_store=settings.bus_store, reserve_bytes=settings.reserve_mib << 20
        )
        self.loads = Loads(bus, self.limits)
        self.pools = Pools(bus, self.directory, clock)
        self.cancels = Cancels(bus, self.directory, self.results, clock)
        self.objects = Objects(bus, clock)
        self.dicts, self.queues = Dicts(bus, self.blobs, clock), Queues(bus, clock, context.start)
        self.rooms = Rooms(store, bus, clock, settings.volume_grace_s)
        self.volumes, self.collector = Volumes(bus, self.rooms, clock), Collector(bus, self.rooms, clock)
        self.objects.clears.update(dicts=self.dicts.clear, queues=self.queues.remove, volumes=self.volumes.clear)
        self.secrets = Secrets(bus, Sealer(settings.secrets_key), clock)
        names = NameClaims(bus, clock)
        self.signing = Signing(bus, Sealer(settings.secrets_key), clock)
        self.webhooks = WebhookUsers(bus, self.signing, rules_of(settings), clock)
        images = ImageRecords(bus, clock)
        self.sources = ImageSources(self.blobs, images)
        self.apps = Apps(
            bus=bus,
            directory=self.directory,
            pools=self.pools,
            blobs=self.blobs,
            clock=clock,
            secrets=self.secrets,
            addresses=self.addresses,
            names=names,
            webhooks=self.webhooks,
            objects=self.objects,
            images=images,
            sources=self.sources,
        )
        self.targets = Targets(self.directory, Variants(bus, self.directory, clock, self.secrets, self.objects))
        self.stopping = Stopping(self.apps, self.cancels, clock)
        self.acceptor = self._acceptor()
        self.generators = Generators(
            acceptor=self.acceptor,
            waits=self.waits,
            results=self.results,
            cancels=self.cancels,
            waiting=self.waiting,
            requests=self.requests,
            draining=self.draining,
            start=context.start,
        )
        self.keys = IdempotencyKeys(bus, self.acceptor, self.results, clock)

    def _acceptor(self) -> Acceptor:
        return Acceptor(
            bus=self.bus,
            directory=self.directory,
            pools=self.pools,
            loads=self.loads,
            blobs=self.blobs,
            condition=self.condition,
            limits=self.limits,
            clock=self.context.clock,
            webhooks=self.webhooks,
            trace_ratio=self.settings.trace_ratio,
        )

    # ------------------------------------------------------------------ life

    async def run(self, listener: socket.socket) -> None:
        """Serve until the context stops, then drain."""
        context = self.context
        self.addresses.listens_at(url_of(listener))
        await self._open()
        sending = Sending(self.settings, self.bus, self.results, self.directory, self.webhooks, context)
        await sending.open()
        async with serving(self._edge(), listener, self.settings.drain_s):
            log.info("listening", url=url_of(listener))
            context.ready()
            await context.stopping.wait()
            # Whoever waits is told to ask again, and asks another gateway, or this one when it is back.
            self.draining.set()
            self.waits.drain()
            self.routes.drain()
        self.routes.close()
        await sending.close()
        await self.waits.close()
        self.caller_spans.close()
        self.condition.close()
        await self.bus.flush()

    async def _open(self) -> None:
        context = self.context
        await self.waits.open_inbox()
        await self.queues.listen()
        context.start(self.directory.run(), "gateway directory")
        context.start(self.fleet.run(), "gateway fleet")
        async with asyncio.timeout(SYNC_S):
            await self.directory.synced()
        await self.condition.tick()
        context.start(self._every(WAITS_EVERY_S, self.waits.tick), "gateway waits")
        context.start(self._every(TICK_S, self.caller_spans.tick), "gateway spans")
        context.start(self._every(TELL_S, self.routes.tick), "gateway web demand")
        context.start(self._every(SWEEP_S, self.stopping.sweep), "gateway sweep")
        context.start(self._every(TIDY_S, self.stopping.tidy), "gateway tidy")
        context.start(self._every(self.settings.volume_collect_s, self._collect), "gateway volume blocks")
        context.start(self._every(CHECK_EVERY_S, self.condition.tick), "gateway condition")
        if exporter := self._exporter():
            context.start(exporter.run(), "gateway otlp")
        context.health.check("bus", lambda: None if self.bus.connected else "the bus is not connected")
        context.health.check("drain", lambda: "the gateway is stopping" if self.draining.is_set() else None)
        self.requests.observe(context.telemetry.meter("squall_gateway"), lambda: len(self.waits))

    async def _every(self, interval_s: float, tick: Callable[[], Awaitable[None]]) -> None:
        """Loops outlive a bus that is away for a while."""
        while True:
            await self.context.clock.sleep(interval_s)
            try:
                await tick()
            except BusError as error:
                log.warning("tick_failed", tick=tick.__qualname__, reason=error.message)

    async def _collect(self) -> None:
        try:
            await self.collector.tick()
        except (SquallError, OSError) as error:
            log.warning("volume_blocks_not_collected", reason=str(error))

    def _exporter(self) -> OtlpExport | None:
        settings, common = self.settings, TelemetrySettings.load()
        endpoint, protocol = settings.otlp_endpoint, settings.otlp_protocol
        if not endpoint:
            endpoint, protocol = common.otlp_endpoint or "", common.otlp_protocol
        if not endpoint:
            return None
        from squall_gateway.otlp import OtlpExport, open_exporter  # 150 ms, which only those pay who export

        return OtlpExport(self.bus, open_exporter(endpoint, protocol, settings.otlp_headers))

    # ------------------------------------------------------------------ routes

    def _edge(self) -> App:
        context = self.context
        app = application.build(self.version, self._routers(), context.health, context.telemetry.exposition)
        tokens = Tokens(self.bus, context.clock)
        hooks = ContainerHooks(self.directory)
        edge = Edge(tokens, self.condition, self.requests, self._hot(), app, self._door(tokens), hooks)
        proxies = self.settings.trusted_proxies
        return ProxyHeadersMiddleware(edge, proxies.split(",")) if proxies else edge  # type: ignore[arg-type, return-value]  # its ASGI types are narrower

    def _door(self, tokens: Tokens) -> WebDoor:
        settings = self.settings
        parts = DoorParts(
            settings=settings,
            directory=self.directory,
            pools=self.pools,
            tokens=tokens,
            routes=self.routes,
            addresses=self.addresses,
            sockets=OpenSockets(self.directory, self.fleet),
            records=WebRecords(self.bus, settings.trace_ratio),
            clock=self.context.clock,
            shards=self.bus.topology.shards,
        )
        door = WebDoor(parts)
        self.context.start(self._every(TELL_S, door.tick), "gateway web door")
        return door

    def _hot(self) -> dict[tuple[str, str], Handler]:
        targets = Pinning(self.targets, self.results, self.context.clock)
        calls = CallRoutes(
            self.acceptor,
            targets,
            self.waits,
            self.results,
            self.generators,
            self.keys,
            self.waiting,
            self.requests,
            self.caller_spans,
            ResultAnswers(self.blobs),
        )
        maps = MapRoutes(self.acceptor, targets, self.results, self.waiting, self.requests, self.draining)
        return {
            ("POST", Route.CALLS): calls.post,
            ("POST", Route.SPANS): calls.post_spans,
            ("POST", Route.SPAWNS): SpawnRoutes(self.acceptor, targets, self.requests, self.caller_spans).post,
            ("GET", Route.CALL_RESULT.format(call="*")): calls.result,
            ("POST", Route.CALL_INPUTS.format(call="*")): maps.post_inputs,
            ("GET", Route.CALL_RESULTS.format(call="*")): maps.get_results,
            ("POST", Route.ENTRIES): TogetherRoutes(self.objects, self.dicts, self.queues, self.requests).post,
            **EntryRoutes(self.objects, self.dicts, self.queues).hot(),
        }

    def _json_calls(self) -> list[APIRouter]:
        values = JsonValues(self.blobs)
        outputs = JsonOutputRoutes(self.waits, self.results, self.waiting, self.loads, values, self.draining)
        calls = JsonCallRoutes(
            requests=JsonRequests(self.acceptor, self.targets, self.directory),
            outputs=outputs,
            acceptor=self.acceptor,
            waits=self.waits,
            generators=self.generators,
            keys=self.keys,
            counts=self.requests,
            caller_spans=self.caller_spans,
            values=values,
        )
        return [calls.router(), outputs.router()]

    def _routers(self) -> list[APIRouter]:
        bus, directory, fleet, clock = self.bus, self.directory, self.fleet, self.context.clock
        logs, letters, images = Logs(bus, directory), Letters(bus, directory), ImageRecords(bus, clock)
        owners = TraceOwners(bus, directory, images)
        traces = Traces(bus, self.results, self.caller_spans, owners, self.settings.trace_ratio)
        environments = Environments(bus, directory, clock, in_words(directory, self.objects, self.secrets, images))
        scaling = Scaling(bus, directory, self.targets, self.pools, fleet, clock)
        commands = NodeCommands(bus, fleet)
        history = History(bus, directory, self.results, self.waiting, letters)
        bulk = BulkCancels(self.cancels, self.results, directory, self.context.start, clock)
        redriving = Redriving(bus, letters, self.acceptor, self.targets, self.results, clock)
        return [
            FunctionRoutes(bus, directory, self.version, self.settings, scaling, self.addresses).router(),
            AppRoutes(
                bus,
                self.apps,
                self.stopping,
                directory,
                fleet,
                self.waiting,
                clock,
                scaling,
                commands,
                self.addresses,
                environments,
            ).router(),
            EnvironmentRoutes(environments).router(),
            VersionRoutes(Versions(self.apps, directory), commands).router(),
            BlobRoutes(self.blobs, self.settings.max_payload_bytes).router(),
            ImageRoutes(
                images, logs, self.draining, environments, Pruning(bus, clock, images, fleet, commands)
            ).router(),
            LogRoutes(logs, Images(bus, logs, self.sources, clock), directory, fleet, self.draining).router(),
            HistoryRoutes(history, WebHistory(bus, directory), self.results, traces, self.cancels, directory).router(),
            CancelRoutes(bulk, self.draining).router(),
            CommandRoutes(commands, self.draining).router(),
            *self._json_calls(),
            TokenRoutes(bus, clock).router(),
            SecretRoutes(self.secrets, environments).router(),
            ObjectRoutes(self.objects, environments).router(),
            VolumeRoutes(self.objects, self.volumes).router(),
            VolumeBlockRoutes(self.rooms, self.collector).router(),
            ScheduleRoutes(Schedules(bus, self.acceptor, self.targets, clock)).router(),
            LetterRoutes(letters, redriving, self.results, directory).router(),
            WebhookRoutes(Webhooks(bus), self.signing, self.results).router(),
            FleetRoutes(
                bus, fleet, directory, self.condition, clock, self.version, self.settings.sync_interval
            ).router(),
        ]
