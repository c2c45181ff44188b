"""A gateway on a bus of its own, a client of it, and an agent of thirty lines."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from tests.support.eventually import eventually
from tests.support.nats_server import NatsServer

from squall.http_api.protocol import FrameKind, Header, frames
from squall.http_api.routes import Route
from squall.ids import new_call_id
from squall.spec import CodeRef, FunctionSpec, MethodSpec, to_wire
from squall_bus import Bus, BusSettings, Delivery, Puller, SubjectTaken, connect
from squall_contracts import subjects, topology
from squall_contracts.calls import CallRequested, CallResult, CancelRequested, ItemsTaken, ItemYielded
from squall_gateway import service
from squall_gateway.auth import create_token
from squall_gateway.settings import GatewaySettings
from squall_service.clock import Clock
from squall_service.run import Running, Service, ServiceContext, start

SHARDS = 2
NOW = 1_700_000_000.0


@dataclass
class World:
    """Everything that a test of the gateway needs."""

    server: NatsServer
    bus: Bus
    folder: Path
    token: str
    stack: AsyncExitStack
    clock: Clock | None = None
    """Of the gateways; None = the machine's."""
    gateways: list[Running] = field(default_factory=list)
    url: str = ""
    http: httpx.AsyncClient = field(default_factory=httpx.AsyncClient)

    async def start_gateway(self, **settings: Any) -> tuple[Running, httpx.AsyncClient]:
        """One more gateway, and a client of it."""
        port = free_port()
        given = {"blobs": str(self.folder / "blobs"), "drain_s": 1.0, **settings}
        chosen = GatewaySettings(port=port, **given)
        bus = await self.stack.enter_async_context(connect(self.bus_settings("gateway"), self.bus.topology))

        async def main(context: ServiceContext[Any]) -> None:
            await service.run(context.settings, bus, context)

        gateway = Service(name="gateway", main=main, settings=chosen)
        running = await self.stack.enter_async_context(start(gateway, clock=self.clock))
        client = await self.client(f"http://127.0.0.1:{port}", self.token)
        self.gateways.append(running)
        return running, client

    async def client(self, url: str, token: str) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client = httpx.AsyncClient(base_url=url, headers=headers, timeout=30)
        return await self.stack.enter_async_context(client)

    def bus_settings(self, name: str) -> BusSettings:
        return BusSettings(url=self.server.url, shards=SHARDS, name=name)

    # ------------------------------------------------------------------ what a client does

    async def publish(
        self, *specs: FunctionSpec, mode: str = "detached", name: str = "shop", **more: Any
    ) -> dict[str, Any]:
        """Publish an app; the answer."""
        body = {"name": name, "mode": mode, "functions": [to_wire(spec) for spec in specs or (a_function(),)], **more}
        answer = await self.http.post(Route.APPS, json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def agent(self, answer: Callable[[CallRequested], CallResult | None] | None = None) -> TinyAgent:
        """An agent that answers each input; by default with its own payload."""
        return TinyAgent(self.bus, answer or succeeded)


@dataclass
class TinyAgent:
    """Pulls, records, replies, acks. `None` from `answer` leaves an input undone and leased."""

    bus: Bus
    answer: Callable[[CallRequested], CallResult | None]
    seen: list[CallRequested] = field(default_factory=list)
    cancels: list[CancelRequested] = field(default_factory=list)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _tasks: asyncio.TaskGroup | None = None

    async def serve(self, pool: str) -> None:
        """Take the pool's inputs in every shard, as soon as its consumers are there."""
        region = self.bus.topology.region
        listening = await self.bus.subscribe(
            subjects.cancel(region, pool), lambda message: self.cancels.append(CancelRequested.decode(message.data))
        )
        self._stack.push_async_callback(listening.close)
        self._tasks = self._tasks or await self._stack.enter_async_context(asyncio.TaskGroup())
        for shard in range(self.bus.topology.shards):
            task = self._tasks.create_task(self._take(subjects.work_stream(region, shard), pool))
            self._stack.callback(task.cancel)

    async def _take(self, stream: str, pool: str) -> None:
        await eventually(lambda: self.bus.consumer_info(stream, pool), within_s=60)
        puller = await self.bus.pull(stream, pool, lambda delivery: self._start(delivery, puller))
        self._stack.push_async_callback(puller.close)
        puller.want(1000)

    def _start(self, delivery: Delivery, puller: Puller) -> None:
        assert self._tasks is not None
        self._tasks.create_task(self.on_delivery(delivery))
        puller.want(1000)

    async def on_delivery(self, delivery: Delivery) -> None:
        request = CallRequested.decode(delivery.data)
        self.seen.append(request)
        result = self.answer(request)
        if result is not None:
            await self.finish(request, result)
            delivery.ack()

    async def finish(self, request: CallRequested, result: CallResult) -> None:
        """Record before reply."""
        subject = subjects.result(self.bus.topology.region, request.workspace, request.call, request.index)
        data = result.encode()
        try:
            await self.bus.publish(subject, data, msg_id=f"{request.call}.{request.index}.{result.attempt}", ttl_s=3600)
        except SubjectTaken:
            return
        if request.reply_to:
            self.bus.send(request.reply_to, data)

    def send_item(
        self, request: CallRequested, attempt: str, seq: int, payload: bytes, blob: str | None = None
    ) -> None:
        item = ItemYielded(request.call, attempt, seq, "pickle", payload, blob, request.workspace)
        self.bus.send(subjects.items(self.bus.topology.region, request.call), item.encode())

    async def credits(self, call: str) -> list[ItemsTaken]:
        """What the caller has taken so far, as it comes."""
        taken: list[ItemsTaken] = []
        listening = await self.bus.subscribe(
            subjects.credit(self.bus.topology.region, call), lambda m: taken.append(ItemsTaken.decode(m.data))
        )
        self._stack.push_async_callback(listening.close)
        return taken

    async def stop(self) -> None:
        await self._stack.aclose()


def succeeded(
    request: CallRequested, payload: bytes | None = None, attempt: str = "1-abcdef", **more: Any
) -> CallResult:
    """The result of an input; its own payload unless another is given."""
    return CallResult(
        call=request.call,
        index=request.index,
        workspace=request.workspace,
        outcome="succeeded",
        attempt=attempt,
        payload=request.payload if payload is None else payload,
        function=request.function,
        pool=request.pool,
        node="n1",
        container="co-1",
        started_at=1.0,
        ended_at=2.0,
        **more,
    )


def a_function(name: str = "double", **fields: Any) -> FunctionSpec:
    return FunctionSpec(name=name, code=CodeRef(bundle_sha256="", module="shop", qualname=name), **fields)


def a_generator(name: str = "count") -> FunctionSpec:
    return a_function(name, methods=(MethodSpec(is_generator=True),))


def call_headers(app: Mapping[str, Any], function: str = "double", **more: str) -> dict[str, str]:
    """Headers of a call of a published app."""
    headers = {Header.FUNCTION: f"{app['app_id']}/{function}", Header.CALL: new_call_id(SHARDS)}
    names = {name.lower(): value for name, value in vars(Header).items() if isinstance(value, str)}
    return headers | {names[name]: value for name, value in more.items()}


def only_frame(body: bytes) -> frames.Frame:
    ready = frames.Decoder().feed(body)
    assert len(ready) == 1, ready
    return ready[0]


def input_frames(*inputs: bytes, first: int = 0) -> bytes:
    """A chunk of a map."""
    return b"".join(frames.encode(FrameKind.INPUT, {"index": first + n}, data) for n, data in enumerate(inputs))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def error_of(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.content)["error"]
    return found


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def a_world(
    folder: Path,
    clock: Clock | None = None,
    *,
    server_config: str = "",
    layout: topology.Topology | None = None,
    **settings: Any,
) -> AsyncIterator[World]:
    """A bus server, and a gateway on it."""
    layout = layout or topology.build("local", SHARDS)
    async with NatsServer(folder / "nats", extra=server_config) as server:
        bus_settings = BusSettings(url=server.url, shards=SHARDS, name="test")
        async with connect(bus_settings, layout) as bus, AsyncExitStack() as stack:
            await bus.ensure_topology()
            token = await create_token(bus, "main", "workspace", "test", now=NOW)
            world = World(server=server, bus=bus, folder=folder, token=token, stack=stack, clock=clock)
            _, world.http = await world.start_gateway(**settings)
            yield world
