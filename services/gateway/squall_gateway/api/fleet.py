"""/v1/containers, /v1/nodes and /v1/status: what runs where."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request

from squall.http_api.fleet import ContainerInfo, GpuInfo, NodeInfo
from squall_bus import Bus, StoreInfo
from squall_contracts.health import HEALTH, StreamsChecked
from squall_contracts.nodes import ClaimState, ContainerClaim, GpuFact, NodeFact
from squall_gateway.api.functions import durability
from squall_gateway.api.requests import workspace_of
from squall_gateway.condition import Condition
from squall_gateway.directory import Directory
from squall_gateway.fleet import Fleet, Running
from squall_service.clock import Clock


@dataclass(frozen=True)
class ContainerList:
    """GET /v1/containers."""

    containers: list[ContainerInfo]


@dataclass(frozen=True)
class NodeList:
    """GET /v1/nodes."""

    nodes: list[NodeInfo]


@dataclass(frozen=True)
class Status:
    """GET /v1/status: the platform at a glance."""

    version: str
    region: str
    shards: int
    bus_connected: bool
    bus_version: str
    storage_full: str
    durability: str
    """What an acknowledged call survives."""
    replicas: int
    """Copies of what must survive a server."""
    store_used_bytes: int
    """Of nats-server's files, by our account."""
    store_limit_bytes: int | None
    clock_skews_s: dict[str, float]
    """Seconds ahead of the bus server's clock: this gateway, and each node."""
    streams_checked: int
    """By canaries, in the last two minutes; 0 = by nobody."""
    streams_slowest_ms: float
    streams_failing: dict[str, str]
    nodes: int
    containers: int
    apps: int


@dataclass(frozen=True, slots=True)
class FleetRoutes:
    """Looks at the fleet."""

    bus: Bus
    fleet: Fleet
    directory: Directory
    condition: Condition
    clock: Clock
    version: str
    sync_interval: str

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["fleet"])
        router.get("/v1/containers")(self.containers)
        router.get("/v1/nodes")(self.nodes)
        router.get("/v1/status")(self.status)
        return router

    async def containers(self, request: Request, app: str = "", environment: str = "main") -> ContainerList:
        """The containers of the workspace, or of one app."""
        workspace = workspace_of(request)
        app_id = (await self.directory.find_app(app, workspace, environment)).record.app_id if app else ""
        stats = self.fleet.running(self.clock.now())
        claims = [c for c in self.fleet.all_claims() if c.workspace == workspace and app_id in ("", c.app_id)]
        facts = await self.fleet.nodes() if any(claim.gpus for claim in claims) else []
        devices = {gpu.uuid: _gpu(gpu, used=True) for fact in facts for gpu in fact.gpus}
        rows = [await self._container(claim, stats.get(claim.container), devices) for claim in claims]
        return ContainerList(sorted(rows, key=lambda row: row.started_at, reverse=True))

    async def _container(
        self, claim: ContainerClaim, running: Running | None, devices: dict[str, GpuInfo]
    ) -> ContainerInfo:
        return ContainerInfo(
            container=claim.container,
            app=claim.app_id,
            function=await self.directory.function_name(claim.function_id, claim.workspace),
            node=claim.node,
            state=running.state if running and running.state == ClaimState.DRAINING else claim.state,
            running=running.inputs if running else 0,
            started_at=claim.created_at,
            how=claim.how,
            gpus=tuple(devices.get(uuid) or GpuInfo(uuid=uuid, used=True) for uuid in claim.gpus),
        )

    async def nodes(self) -> NodeList:
        """The machines that are there."""
        facts = await self.fleet.nodes()
        return NodeList([_node(fact) for fact in sorted(facts, key=lambda fact: fact.node)])

    async def status(self, request: Request) -> Status:
        """The platform at a glance."""
        workspace = workspace_of(request)
        connected = self.bus.connected
        facts = await self.fleet.nodes_seen() if connected else []
        checked = await self._streams_checked() if connected else []
        store = await self.bus.store_info() if connected else StoreInfo(used_bytes=0, limit_bytes=None)
        skews = {fact.node: fact.at - seen_at for fact, seen_at in facts}
        if connected:
            skews["gateway"] = await self.bus.clock_skew()
        return Status(
            version=self.version,
            region=self.bus.topology.region,
            shards=self.bus.topology.shards,
            bus_connected=connected,
            bus_version=".".join(map(str, self.bus.server_version)),
            storage_full=self.condition.storage_full,
            durability=durability(self.sync_interval),
            replicas=self.bus.topology.streams[0].replicas,
            store_used_bytes=store.used_bytes,
            store_limit_bytes=store.limit_bytes,
            clock_skews_s={name: round(skew, 3) for name, skew in skews.items()},
            streams_checked=sum(each.streams for each in checked),
            streams_slowest_ms=max((each.slowest_ms for each in checked), default=0.0),
            streams_failing={stream: why for each in checked for stream, why in each.failing.items()},
            nodes=len(facts),
            containers=sum(claim.workspace == workspace for claim in self.fleet.all_claims()),
            apps=sum(a.record.workspace == workspace and a.record.state != "stopped" for a in self.directory.apps()),
        )

    async def _streams_checked(self) -> list[StreamsChecked]:
        entries = await self.bus.kv(HEALTH).entries()
        return [StreamsChecked.decode(entry.value) for entry in entries]


def _node(fact: NodeFact) -> NodeInfo:
    return NodeInfo(
        node=fact.node,
        region=fact.region,
        backends=fact.backends,
        cpu=fact.cpu,
        cpu_used=fact.cpu_used,
        memory_mib=fact.memory_mib,
        memory_used_mib=fact.memory_used_mib,
        gpus=tuple(gpu.type for gpu in fact.gpus),
        containers=fact.containers,
        draining=fact.draining,
        seen_at=fact.at,
        devices=tuple(_gpu(gpu, used=gpu.uuid in fact.gpus_used) for gpu in fact.gpus),
        gpu_note=fact.gpu_note,
        preemptible=fact.preemptible,
        leaving_at=fact.leaving_at,
        backend_notes=fact.backend_notes,
    )


def _gpu(fact: GpuFact, *, used: bool) -> GpuInfo:
    return GpuInfo(
        uuid=fact.uuid,
        type=fact.type,
        name=fact.name,
        memory_mib=fact.memory_mib,
        memory_used_mib=fact.memory_used_mib,
        simulated=fact.simulated,
        mig=fact.mig,
        processes=fact.processes,
        used=used,
        trouble=fact.trouble,
    )
