"""/v1/secrets and /v1/secret-values. Values come in; none ever goes out."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request

from squall.http_api.routes import Route
from squall.http_api.storage import PutSecret, SecretInfo, SecretValues, UpdateSecret
from squall_gateway.api.requests import workspace_of
from squall_gateway.environments import Environments
from squall_gateway.secrets import Secrets


@dataclass(frozen=True)
class SecretList:
    """GET /v1/secrets."""

    objects: list[SecretInfo]


@dataclass(frozen=True, slots=True)
class SecretRoutes:
    """Makes, changes, lists and removes secrets."""

    secrets: Secrets
    environments: Environments

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["secrets"])
        router.get(Route.SECRETS)(self.list_secrets)
        router.post(Route.SECRETS)(self.put)
        router.get(Route.SECRET)(self.info)
        router.post(Route.SECRET)(self.update)
        router.delete(Route.SECRET)(self.delete)
        router.post(Route.SECRET_VALUES)(self.keep)
        return router

    async def list_secrets(self, request: Request, environment: str = "main") -> SecretList:
        """The secrets of an environment: names and keys, no values."""
        return SecretList(await self.secrets.list(environment, workspace_of(request)))

    async def put(self, request: Request, wanted: PutSecret) -> SecretInfo:
        """Make a secret, or replace all of its values."""
        await self.environments.require(wanted.environment, workspace_of(request))
        return await self.secrets.put(wanted, workspace_of(request))

    async def info(self, request: Request, name: str, environment: str = "main") -> SecretInfo:
        """A secret's keys and age."""
        return await self.secrets.info(name, environment, workspace_of(request))

    async def update(self, request: Request, name: str, wanted: UpdateSecret) -> SecretInfo:
        """Set or remove some of its values. Containers that start from now on see it."""
        return await self.secrets.update(name, wanted, workspace_of(request))

    async def delete(self, request: Request, name: str, environment: str = "main") -> SecretInfo:
        """Remove a secret."""
        return await self.secrets.delete(name, environment, workspace_of(request))

    async def keep(self, request: Request, wanted: SecretValues) -> SecretInfo:
        """Keep values that a program brought: the id that its functions declare."""
        return await self.secrets.keep(wanted, workspace_of(request))
