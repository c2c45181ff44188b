"""/v1/objects and /v1/object-ids: dicts, queues and volumes by name, and those without one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fastapi import APIRouter, Request

from squall.http_api.routes import Route
from squall.http_api.storage import MakeObject, ObjectInfo, RenameObject
from squall_gateway.api.requests import workspace_of
from squall_gateway.environments import Environments
from squall_gateway.objects import Objects


class Kind(StrEnum):
    """What an object is."""

    DICTS = "dicts"
    QUEUES = "queues"
    VOLUMES = "volumes"


@dataclass(frozen=True)
class ObjectList:
    """GET /v1/objects/{kind}."""

    objects: list[ObjectInfo]


@dataclass(frozen=True, slots=True)
class ObjectRoutes:
    """Makes, finds, lists and removes objects."""

    objects: Objects
    environments: Environments

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["objects"])
        router.get("/v1/objects/{kind}")(self.list_objects)
        router.post("/v1/objects/{kind}")(self.create)
        router.get("/v1/objects/{kind}/{name}")(self.info)
        router.delete("/v1/objects/{kind}/{name}")(self.delete)
        router.post(Route.OBJECT_RENAME)(self.rename)
        router.post(Route.OBJECT)(self.renew)
        router.delete(Route.OBJECT)(self.drop)
        return router

    async def list_objects(self, request: Request, kind: Kind, environment: str = "main") -> ObjectList:
        """The objects of a kind that have names."""
        return ObjectList(await self.objects.list(kind.value, environment, workspace_of(request)))

    async def create(self, request: Request, kind: Kind, wanted: MakeObject) -> ObjectInfo:
        """Make an empty one."""
        await self.environments.require(wanted.environment, workspace_of(request))
        return await self.objects.create(
            kind.value, wanted.name, wanted.environment, workspace_of(request), ephemeral=wanted.ephemeral
        )

    async def info(self, request: Request, kind: Kind, name: str, environment: str = "main") -> ObjectInfo:
        """One by its name."""
        return await self.objects.named(kind.value, name, environment, workspace_of(request))

    async def delete(self, request: Request, kind: Kind, name: str, environment: str = "main") -> ObjectInfo:
        """Remove one with all that is in it."""
        return await self.objects.delete(kind.value, name, environment, workspace_of(request))

    async def rename(self, request: Request, kind: Kind, name: str, wanted: RenameObject) -> ObjectInfo:
        """The same object under another name."""
        return await self.objects.rename(kind.value, name, wanted.name, wanted.environment, workspace_of(request))

    async def renew(self, request: Request, object: str) -> ObjectInfo:
        """An object without a name is still in use."""
        return await self.objects.renew(object, workspace_of(request))

    async def drop(self, request: Request, object: str) -> ObjectInfo:
        """Remove an object without a name."""
        return await self.objects.drop(object, workspace_of(request))
