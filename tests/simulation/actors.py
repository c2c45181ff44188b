"""The services of a simulation: squall's own code, started on simulated connections. Nothing of it is rewritten here.

Scheduler, autoscaler and agent run whole; of the gateway everything behind HTTP (admission, journal, waits, results,
cancels). What is replaced: the bus (`bus.SimBus`), containers (`containers.SimBackend`), sockets and files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from opentelemetry.metrics import NoOpMeter
from tests.simulation.bus import SimBus
from tests.simulation.containers import SimBackend

from squall.errors import SquallError
from squall_autoscaler import service as autoscaler_service
from squall_autoscaler.settings import AutoscalerSettings
from squall_bus import Bus
from squall_contracts.functions import TokenRecord
from squall_gateway.accept import Acceptor
from squall_gateway.answers import public
from squall_gateway.api.calls import CallRoutes
from squall_gateway.api.maps import MapRoutes
from squall_gateway.cancels import Cancels
from squall_gateway.condition import Condition
from squall_gateway.directory import Directory
from squall_gateway.edge import Exchange
from squall_gateway.generators import Generators
from squall_gateway.idempotency import IdempotencyKeys
from squall_gateway.load import Loads
from squall_gateway.metrics import Requests
from squall_gateway.policy.admission import Limits
from squall_gateway.pools import Pools
from squall_gateway.results import Results
from squall_gateway.targets import Targets
from squall_gateway.waiting import Waiting
from squall_gateway.waits import Waits
from squall_gpu_agent import agent as agent_module
from squall_gpu_agent.agent import Agent
from squall_gpu_agent.settings import AgentSettings
from squall_scheduler import service as scheduler_service
from squall_scheduler.settings import SchedulerSettings
from squall_service.run import Service, ServiceContext

WORKSPACE = "main"
WAITS_EVERY_S = 1.0


class SimClock:
    """A process's idea of the time."""

    def __init__(self, loop: Any, wall: float, boot: float) -> None:
        self._loop = loop
        self._wall = wall
        self._boot = boot
        self.skew_s = 0.0

    def now(self) -> float:
        return float(self._wall + self._loop.time() + self.skew_s)

    def monotonic(self) -> float:
        return float(self._loop.time() - self._boot)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Telemetry:
    def meter(self, name: str) -> NoOpMeter:
        return NoOpMeter(name)


def context_of(name: str, settings: Any, clock: SimClock) -> ServiceContext[Any]:
    """What a service gets from its process. Called on the loop."""
    service = Service(name=name, main=cast("Any", None), settings=settings)
    return ServiceContext(service, clock, cast("Any", _Telemetry()))


async def run_scheduler(bus: SimBus, clock: SimClock, settings: SchedulerSettings) -> None:
    """One scheduler."""
    context = context_of("scheduler", settings, clock)
    await context.run_main(lambda c: scheduler_service.run(settings, cast("Bus", bus), c))


async def run_autoscaler(bus: SimBus, clock: SimClock, settings: AutoscalerSettings) -> None:
    """One autoscaler."""
    context = context_of("autoscaler", settings, clock)
    await context.run_main(lambda c: autoscaler_service.run(settings, cast("Bus", bus), c))


# ---------------------------------------------------------------------- the agent


class SimBundles:
    """Every function's code is on every machine."""

    def __init__(self, folder: Path, blobs: object) -> None:
        pass

    async def ensure(self, code: object) -> Path:
        return Path("/nowhere")


class SimSplice:
    """Nobody calls the platform from inside a container here."""

    def __init__(self, url: str) -> None:
        pass

    @asynccontextmanager
    async def listen(self, path: Path) -> AsyncIterator[None]:
        yield


REPLACED = ((agent_module, "Bundles", SimBundles), (agent_module, "Splice", SimSplice))
"""(module, name, stand-in), exchanged while a simulation runs."""


@dataclass(slots=True)
class AgentHandle:
    """A running agent, as far as the simulation looks into it."""

    agent: Agent | None = None
    context: ServiceContext[Any] | None = None


async def run_agent(
    bus: SimBus, clock: SimClock, settings: AgentSettings, backend: SimBackend, handle: AgentHandle
) -> None:
    """One agent; as `squall_gpu_agent.service.run_with`, without folders."""
    context = handle.context = context_of("gpu-agent", settings, clock)

    async def main(_: ServiceContext[Any]) -> None:
        await bus.await_topology()
        async with asyncio.TaskGroup() as group:
            agent = await Agent.build(
                settings, cast("Bus", bus), context, backend=cast("Any", backend), group=group, sockets=Path("/nowhere")
            )
            handle.agent = agent
            async with agent.serve(group):
                await context.stopping.wait()

    await context.run_main(main)


# ---------------------------------------------------------------------- the gateway


class _Fleet:
    """Why inputs wait is not looked at."""

    verdicts: dict[str, Any] = {}  # noqa: RUF012
    desired: dict[str, Any] = {}  # noqa: RUF012

    def claims_of(self, pool: str) -> list[Any]:
        return []


class _Blobs:
    """All payloads are small."""

    async def require(self, sha256: str, size: int) -> None:
        raise AssertionError("nothing here is in the blob store")


@dataclass(slots=True)
class SimGateway:
    """The parts of one gateway. Made by `run_gateway`."""

    bus: SimBus
    clock: SimClock
    calls: CallRoutes
    maps: MapRoutes
    cancels: Cancels
    waits: Waits
    start: Callable[..., Any]

    async def request(
        self, handler: Callable[[Exchange, str], Awaitable[None]], call: str, request: HttpRequest
    ) -> None:
        """What the edge does around a route: errors become answers."""
        exchange = request.exchange()
        try:
            await handler(exchange, call)
        except SquallError as error:
            request.refuse(public(error))
        request.end()

    async def cancel(self, call: str) -> int:
        return await self.cancels.call(call, WORKSPACE)


@dataclass(slots=True)
class HttpRequest:
    """One request on a connection of a client."""

    headers: dict[bytes, bytes]
    body: bytes
    query: bytes
    on_part: Callable[[int, bytes], None]
    """Status and a part of the answer's body."""
    on_end: Callable[[SquallError | None], None]
    gone: asyncio.Future[None]
    """Done when the client has left."""
    _status: int = 0
    _read: bool = False
    _ended: bool = False

    def exchange(self) -> Exchange:
        token = TokenRecord(workspace=WORKSPACE, name="", scope="workspace", created_at=0.0)
        scope = {"query_string": self.query}
        return Exchange(scope, self._receive, cast("Any", self._send), "r", self.headers, token)

    async def _receive(self) -> dict[str, Any]:
        if not self._read:
            self._read = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await asyncio.shield(self.gone)
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif message.get("body"):
            self.on_part(self._status, message["body"])

    def refuse(self, error: SquallError) -> None:
        self._finish(error)

    def end(self) -> None:
        self._finish(None)

    def _finish(self, error: SquallError | None) -> None:
        if not self._ended:
            self._ended = True
            self.on_end(error)


@dataclass(slots=True)
class GatewayHandle:
    """A running gateway; None until it is ready."""

    gateway: SimGateway | None = None
    errors: list[str] = field(default_factory=list)


async def run_gateway(bus: SimBus, clock: SimClock, limits: Limits, handle: GatewayHandle) -> None:
    """One gateway."""
    context = context_of("gateway", None, clock)

    async def main(_: ServiceContext[Any]) -> None:
        await bus.await_topology()
        gateway = build_gateway(bus, clock, limits, context)
        await gateway.waits.open_inbox()
        directory = gateway.cancels.directory
        context.start(directory.run())
        await directory.synced()
        context.start(_every(clock, gateway.waits.tick))
        handle.gateway = gateway
        await context.stopping.wait()

    await context.run_main(main)


async def _every(clock: SimClock, tick: Callable[[], Awaitable[None]]) -> None:
    while True:
        await clock.sleep(WAITS_EVERY_S)
        try:
            await tick()
        except SquallError:
            continue


def build_gateway(sim_bus: SimBus, clock: SimClock, limits: Limits, context: ServiceContext[Any]) -> SimGateway:
    """As `squall_gateway.service.Gateway`, without HTTP, blobs and the fleet's view."""
    bus, blobs = cast("Bus", sim_bus), cast("Any", _Blobs())
    directory, requests = Directory(bus), Requests()
    results, waits = Results(bus, clock), Waits(bus, context.start)
    waiting = Waiting(cast("Any", _Fleet()))
    cancels = Cancels(bus, directory, results, clock)
    acceptor = Acceptor(
        bus=bus,
        directory=directory,
        pools=Pools(bus, directory, clock),
        loads=Loads(bus, limits),
        blobs=blobs,
        condition=Condition(bus, blobs, clock),
        limits=limits,
        clock=clock,
    )
    targets, draining = Targets(directory), asyncio.Event()
    generators = Generators(
        acceptor=acceptor,
        waits=waits,
        results=results,
        cancels=cancels,
        waiting=waiting,
        requests=requests,
        draining=draining,
        start=context.start,
    )
    keys = IdempotencyKeys(bus, acceptor, results, clock)
    calls = CallRoutes(acceptor, targets, waits, results, generators, keys, waiting, requests)
    maps = MapRoutes(acceptor, targets, results, waiting, requests, draining)
    return SimGateway(sim_bus, clock, calls, maps, cancels, waits, context.start)
