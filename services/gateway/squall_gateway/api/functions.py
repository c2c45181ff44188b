"""/v1/info and /v1/functions: what a client must know before it calls."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastapi import APIRouter, Request

from squall.errors import NotFoundError
from squall.http_api.apps import FunctionInfo, PoolOf, PoolStats, ScalingSettings, UpdateScaling
from squall.http_api.protocol import ServerInfo
from squall.http_api.routes import API_VERSION, Route
from squall_bus import Bus
from squall_contracts.functions import AppRecord
from squall_gateway.api.requests import workspace_of
from squall_gateway.directory import Directory
from squall_gateway.scaling import Scaling
from squall_gateway.settings import GatewaySettings
from squall_gateway.web.addresses import Addresses


@dataclass(frozen=True, slots=True)
class FunctionRoutes:
    """Look-ups."""

    bus: Bus
    directory: Directory
    version: str
    settings: GatewaySettings
    scaling: Scaling
    addresses: Addresses

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["functions"])
        router.get(Route.INFO)(self.info)
        router.get(Route.FUNCTIONS)(self.function)
        router.post(Route.FUNCTION_SCALING)(self.scale)
        router.post(Route.FUNCTION_STATS)(self.stats)
        return router

    async def info(self, request: Request) -> ServerInfo:
        """What this server is, and how call ids are made for it."""
        return ServerInfo(
            version=self.version,
            api_version=API_VERSION,
            region=self.bus.topology.region,
            shards=self.bus.topology.shards,
            workspace=workspace_of(request),
            environment="main",
            embedded=self.settings.embedded,
            durability=durability(self.settings.sync_interval),
            blobs_with_calls=True,
            spawns_together=True,
            entries_together=True,
            webhooks=True,
            trace_ratio=self.settings.trace_ratio,
        )

    async def function(
        self,
        request: Request,
        app: str,
        name: str,
        environment: str = "main",
        version: int | None = None,
        spec: bool = False,
    ) -> FunctionInfo:
        """A function by the name of its app and its own; `version` pins an earlier deployment. With `spec` everything
        that it declares, without the values of its variables."""
        workspace = workspace_of(request)
        record = (await self.directory.find_app(app, workspace, environment)).record
        if record.state == "stopped":
            raise NotFoundError(f"app {record.name!r} is stopped", fix="Deploy it again.")
        function_id = functions_of(record, version).get(name)
        if function_id is None:
            raise NotFoundError(f"app {record.name!r} has no function {name!r}")
        function = await self.directory.function(function_id, workspace)
        return FunctionInfo(
            app_id=record.app_id,
            app_name=record.name,
            function_id=function_id,
            name=name,
            version=function.version,
            is_class=function.spec.is_class,
            methods=function.spec.methods,
            parameters=function.spec.parameters,
            web=self.addresses.of(record, function.spec),
            spec=replace(function.spec, env=dict.fromkeys(function.spec.env, "")) if spec else None,
        )

    async def scale(self, request: Request, wanted: UpdateScaling) -> ScalingSettings:
        """Change how many containers a function may have, until the next deploy; or look what it is."""
        return await self.scaling.update(wanted, workspace_of(request))

    async def stats(self, request: Request, wanted: PoolOf) -> PoolStats:
        """What waits and what runs."""
        return await self.scaling.stats(wanted, workspace_of(request))


def durability(sync_interval: str) -> str:
    """What an acknowledged call survives, in words for people."""
    if sync_interval == "always":
        return "fsync always"
    return f"fsync every {sync_interval}: acknowledged calls of that time are lost with the machine"


def functions_of(record: AppRecord, version: int | None) -> dict[str, str]:
    """Function ids by name, of the present version or of an earlier one. Raises `NotFoundError`."""
    if version is None or version == record.version:
        return dict(record.functions)
    for line in record.history:
        if line.version == version:
            return dict(line.functions)
    raise NotFoundError(f"app {record.name!r} has no version {version}")
