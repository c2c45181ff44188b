"""/v1/apps/{app}/history and /v1/apps/{app}/rollback: versions of deployed apps."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request

from squall.http_api.apps import AppVersion, PublishedApp, Rollback
from squall.http_api.routes import Route
from squall_gateway.api.requests import workspace_of
from squall_gateway.apps import check_strategy, published
from squall_gateway.commands import NodeCommands
from squall_gateway.versions import Versions


@dataclass(frozen=True)
class VersionList:
    """GET /v1/apps/{app}/history."""

    versions: list[AppVersion]


@dataclass(frozen=True, slots=True)
class VersionRoutes:
    """What clients do with versions."""

    versions: Versions
    commands: NodeCommands

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["apps"])
        router.get(Route.APP_HISTORY)(self.history)
        router.post(Route.APP_ROLLBACK)(self.rollback)
        return router

    async def history(self, request: Request, app: str, environment: str = "main") -> VersionList:
        """The versions of a deployed app, newest first."""
        return VersionList(await self.versions.history(app, workspace_of(request), environment))

    async def rollback(
        self, request: Request, app: str, wanted: Rollback | None = None, environment: str = "main"
    ) -> PublishedApp:
        """Make an earlier version the present one: calls from now on go there, calls that were accepted stay."""
        wanted = wanted or Rollback()
        check_strategy(wanted.strategy)
        record = await self.versions.rollback(app, workspace_of(request), environment, wanted.version)
        if wanted.strategy == "recreate":
            await self.commands.end_earlier(record.app_id, frozenset(record.functions.values()))
        return published(record)
