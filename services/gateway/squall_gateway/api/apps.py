"""/v1/apps: publish, keep alive, stop, look."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastapi import APIRouter, Request

from squall.http_api.apps import AppStatus, AppSummary, PoolStatus, PublishApp, PublishedApp, WebAddress
from squall.http_api.protocol import decode_parameters
from squall.http_api.routes import Route
from squall_bus import Bus
from squall_contracts.functions import AppRecord, PoolRecord
from squall_contracts.nodes import ClaimState
from squall_gateway.api.requests import workspace_of
from squall_gateway.apps import Apps
from squall_gateway.commands import NodeCommands
from squall_gateway.directory import Directory
from squall_gateway.environments import Environments
from squall_gateway.fleet import Fleet
from squall_gateway.load import backlog
from squall_gateway.scaling import Scaling
from squall_gateway.stopping import Stopping
from squall_gateway.waiting import Waiting
from squall_gateway.web.addresses import Addresses
from squall_service.clock import Clock

_STARTING = (ClaimState.PROPOSED, ClaimState.STARTING)
_PRESENT = (*_STARTING, ClaimState.READY, ClaimState.DRAINING)


@dataclass(frozen=True)
class StopApp:
    """POST /v1/apps/{app}/stop."""

    reason: str = ""


@dataclass(frozen=True)
class AppState:
    """Answer to heartbeat and stop."""

    state: str


@dataclass(frozen=True)
class AppTags:
    """GET and POST /v1/apps/{app}/tags."""

    tags: dict[str, str]


@dataclass(frozen=True)
class AppList:
    """GET /v1/apps."""

    apps: list[AppSummary]


@dataclass(frozen=True, slots=True)
class AppRoutes:
    """What clients do with apps."""

    bus: Bus
    apps: Apps
    stopping: Stopping
    directory: Directory
    fleet: Fleet
    waiting: Waiting
    clock: Clock
    scaling: Scaling
    commands: NodeCommands
    addresses: Addresses
    environments: Environments

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["apps"])
        router.post(Route.APPS)(self.publish)
        router.get(Route.APPS)(self.list_apps)
        router.post(Route.APP_HEARTBEAT)(self.heartbeat)
        router.post(Route.APP_STOP)(self.stop)
        router.get(Route.APP_STATUS)(self.status)
        router.get(Route.APP_TAGS)(self.tags)
        router.post(Route.APP_TAGS)(self.set_tags)
        return router

    async def publish(self, request: Request, wanted: PublishApp) -> PublishedApp:
        """Make an ephemeral app, add functions to one, or deploy a version of a named app."""
        await self.environments.require(wanted.environment, workspace_of(request))
        published = await self.apps.publish(wanted, workspace_of(request))
        if published.unchanged and wanted.mode == "deployed" and not wanted.only_new:
            await self.scaling.reset(published.app_id)
        if wanted.strategy == "recreate" and wanted.mode == "deployed" and not published.unchanged:
            await self.commands.end_earlier(published.app_id, frozenset(published.functions.values()))
        return replace(published, web=await self._web(published.app_id, workspace_of(request)))

    async def _web(self, app_id: str, workspace: str) -> tuple[WebAddress, ...]:
        """Where its web functions answer."""
        record = (await self.directory.app(app_id, workspace)).record
        functions = {target.partition(".")[0] for target in record.web.values()}
        ids = [record.functions[name] for name in sorted(functions)]
        specs = [(await self.directory.function(function_id, workspace)).spec for function_id in ids]
        return tuple(address for spec in specs for address in self.addresses.of(record, spec))

    async def list_apps(self, request: Request, environment: str = "") -> AppList:
        """The apps of the workspace, those that changed last first."""
        workspace = workspace_of(request)
        records = [known.record for known in self.directory.apps()]
        mine = [r for r in records if r.workspace == workspace and environment in ("", r.environment)]
        return AppList([self._summary(r) for r in sorted(mine, key=lambda r: r.updated_at, reverse=True)])

    def _summary(self, record: AppRecord) -> AppSummary:
        pools = self.directory.pools_of(record.app_id)
        claims = [claim for pool in pools for claim in self.fleet.claims_of(pool.pool)]
        return AppSummary(
            app_id=record.app_id,
            name=record.name,
            environment=record.environment,
            state=record.state,
            version=record.version,
            functions=tuple(sorted(record.functions)),
            containers=sum(claim.state in _PRESENT for claim in claims),
            created_at=record.created_at,
            updated_at=record.updated_at,
        )

    async def heartbeat(self, request: Request, app: str) -> AppState:
        """The client of an ephemeral app lives; the answer says whether its app does."""
        return AppState((await self.apps.heartbeat(app, workspace_of(request))).state)

    async def stop(
        self, request: Request, app: str, wanted: StopApp | None = None, environment: str = "main"
    ) -> AppState:
        """Stop an app: its calls are cancelled and its containers end."""
        workspace = workspace_of(request)
        known = await self.directory.find_app(app, workspace, environment)
        reason = wanted.reason if wanted else ""
        record = await self.stopping.stop(known.record.app_id, workspace, reason or "stopped by a client")
        return AppState(record.state)

    async def tags(self, request: Request, app: str, environment: str = "main") -> AppTags:
        """The tags of an app."""
        known = await self.directory.find_app(app, workspace_of(request), environment)
        return AppTags(dict(known.record.tags))

    async def set_tags(self, request: Request, app: str, wanted: AppTags, environment: str = "main") -> AppTags:
        """Replace the tags of an app."""
        workspace = workspace_of(request)
        known = await self.directory.find_app(app, workspace, environment)
        return AppTags(dict((await self.apps.set_tags(known.record.app_id, workspace, wanted.tags)).tags))

    async def status(self, request: Request, app: str, environment: str = "main") -> AppStatus:
        """What the app's pools do, and why inputs wait."""
        known = await self.directory.find_app(app, workspace_of(request), environment)
        record = known.record
        pools = [await self._pool_status(pool) for pool in self.directory.pools_of(record.app_id)]
        return AppStatus(record.app_id, record.name, record.state, tuple(pools))

    async def _pool_status(self, pool: PoolRecord) -> PoolStatus:
        claims, desired = self.fleet.claims_of(pool.pool), self.fleet.desired.get(pool.pool)
        stats = self.fleet.running(self.clock.now())
        running = sum(row.inputs for row in stats.values() if row.pool == pool.pool)
        waiting = max(0, await backlog(self.bus, pool.pool) - running)
        # Web requests are in no queue: what keeps their containers from starting is told all the same.
        in_the_way = waiting or pool.pool in self.fleet.verdicts
        return PoolStatus(
            pool=pool.pool,
            function=await self.directory.function_name(pool.function_id, pool.workspace),
            parameters=decode_parameters(pool.parameters) if pool.parameters else {},
            backlog=waiting,
            running=running,
            ready=sum(claim.state == ClaimState.READY for claim in claims),
            starting=sum(claim.state in _STARTING for claim in claims),
            desired=desired.count if desired else 0,
            reason=desired.reason if desired else "",
            waiting=self.waiting.text(pool.pool) if in_the_way else "",
        )
