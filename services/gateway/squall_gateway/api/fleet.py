"""/v1/containers, /v1/nodes and /v1/status: what runs where."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request

from squall.http_api import ContainerInfo, NodeInfo
from squall_bus import Bus
from squall_contracts.nodes import ContainerClaim, NodeFact
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
        rows = [await self._container(claim, stats.get(claim.container)) for claim in claims]
        return ContainerList(sorted(rows, key=lambda row: row.started_at, reverse=True))

    async def _container(self, claim: ContainerClaim, running: Running | None) -> ContainerInfo:
        return ContainerInfo(
            container=claim.container,
            app=claim.app_id,
            function=await self.directory.function_name(claim.function_id, claim.workspace),
            node=claim.node,
            state=claim.state,
            running=running.inputs if running else 0,
            started_at=claim.created_at,
            how=claim.how,
        )

    async def nodes(self) -> NodeList:
        """The machines that are there."""
        facts = await self.fleet.nodes()
        return NodeList([_node(fact) for fact in sorted(facts, key=lambda fact: fact.node)])

    async def status(self, request: Request) -> Status:
        """The platform at a glance."""
        workspace = workspace_of(request)
        connected = self.bus.connected
        return Status(
            version=self.version,
            region=self.bus.topology.region,
            shards=self.bus.topology.shards,
            bus_connected=connected,
            bus_version=".".join(map(str, self.bus.server_version)),
            storage_full=self.condition.storage_full,
            nodes=len(await self.fleet.nodes()) if connected else 0,
            containers=sum(claim.workspace == workspace for claim in self.fleet.all_claims()),
            apps=sum(a.record.workspace == workspace and a.record.state != "stopped" for a in self.directory.apps()),
        )


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
    )
