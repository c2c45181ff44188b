"""/v1/environments: make, list, remove."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request

from squall.http_api.access import EnvironmentInfo, MakeEnvironment
from squall.http_api.routes import Route
from squall_gateway.api.requests import workspace_of
from squall_gateway.environments import Environments


@dataclass(frozen=True)
class EnvironmentList:
    """GET /v1/environments."""

    environments: list[EnvironmentInfo]


@dataclass(frozen=True, slots=True)
class EnvironmentRoutes:
    """What people do with environments."""

    environments: Environments

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["environments"])
        router.get(Route.ENVIRONMENTS)(self.list_environments)
        router.post(Route.ENVIRONMENTS)(self.create)
        router.delete(Route.ENVIRONMENT)(self.delete)
        return router

    async def list_environments(self, request: Request) -> EnvironmentList:
        """The environments of the workspace."""
        return EnvironmentList(await self.environments.every(workspace_of(request)))

    async def create(self, request: Request, wanted: MakeEnvironment) -> EnvironmentInfo:
        """Make one; 409 if it is there."""
        return await self.environments.create(wanted.name, workspace_of(request))

    async def delete(self, request: Request, environment: str) -> EnvironmentInfo:
        """Remove an empty one; 409 names what is in it."""
        return await self.environments.delete(environment, workspace_of(request))
