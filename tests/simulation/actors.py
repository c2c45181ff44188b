"""The services of a simulation: squall's own code, started on simulated connections. Nothing of it is rewritten here.

Scheduler, autoscaler and agent run whole; of the gateway everything behind HTTP (admission, journal, waits, results,
cancels). What is replaced: the bus (`bus.SimBus`), containers (`containers.SimBackend`), sockets and files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from opentelemetry.metrics import NoOpMeter
from tests.simulation.bus import SimBus
from tests.simulation.containers import SimBackend

from squall.errors import SquallError
from squall.http_api.routes import Route
from squall_autoscaler import service as autoscaler_service
from squall_autoscaler.settings import AutoscalerSettings
from squall_bus import Bus
from squall_contracts.functions import TokenRecord
from squall_gateway import service as gateway_module
from squall_gateway.answers import public
from squall_gateway.edge import Exchange
from squall_gateway.service import Gateway
from squall_gateway.settings import GatewaySettings
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

    async def ensure(self, code: object, workspace: str) -> Path:
        return Path("/nowhere")


class SimSplice:
    """Nobody calls the platform from inside a container here."""

    def __init__(self, url: str, lines: object, tasks: object) -> None:
        pass

    @asynccontextmanager
    async def listen(self, path: Path) -> AsyncIterator[None]:
        yield


class SimDoor:
    """Nobody sends web requests here."""

    address = key = ""

    def __init__(self, *_: object) -> None:
        pass

    @asynccontextmanager
    async def listen(self, folder: Path) -> AsyncIterator[None]:
        yield


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


class SimBlobs:
    """All payloads are small."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    async def require(self, sha256: str, size: int) -> None:
        raise AssertionError("nothing here is in the blob store")


class SimGateway:
    """One gateway behind HTTP. Made by `run_gateway`."""

    def __init__(self, gateway: Gateway) -> None:
        self.parts = gateway
        hot = gateway._hot()
        self.post, self.result = hot["POST", Route.CALLS], hot["GET", Route.CALL_RESULT.format(call="*")]
        self.post_inputs = hot["POST", Route.CALL_INPUTS.format(call="*")]
        self.get_results = hot["GET", Route.CALL_RESULTS.format(call="*")]

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
        return await self.parts.cancels.call(call, WORKSPACE)


REPLACED = (
    (agent_module, "Bundles", SimBundles),
    (agent_module, "Splice", SimSplice),
    (agent_module, "Door", SimDoor),
    (gateway_module, "Blobs", SimBlobs),
)
"""(module, name, stand-in), exchanged while a simulation runs."""


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


async def run_gateway(bus: SimBus, clock: SimClock, settings: GatewaySettings, handle: GatewayHandle) -> None:
    """One gateway: as `squall_gateway.service.Gateway.run`, without HTTP, sweeps and the fleet's view."""
    context = context_of("gateway", settings, clock)

    async def main(_: ServiceContext[Any]) -> None:
        await bus.await_topology()
        gateway = Gateway(settings, cast("Bus", bus), context)
        await gateway.waits.open_inbox()
        context.start(gateway.directory.run())
        await gateway.directory.synced()
        context.start(_every(clock, gateway.waits.tick))
        handle.gateway = SimGateway(gateway)
        await context.stopping.wait()

    await context.run_main(main)


async def _every(clock: SimClock, tick: Callable[[], Awaitable[None]]) -> None:
    while True:
        await clock.sleep(WAITS_EVERY_S)
        try:
            await tick()
        except SquallError:
            continue
