"""/v1/volumes: list, look up a file, commit. Blocks travel as blobs."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request

from squall.http_api.routes import Route
from squall.http_api.storage import CommitVolume, VolumeEntry, VolumeFile, VolumeHead, VolumeVersion
from squall_gateway.api.requests import workspace_of
from squall_gateway.objects import Objects
from squall_gateway.policy.volumes import listed
from squall_gateway.volumes import Volumes


@dataclass(frozen=True)
class VolumeListing:
    """GET /v1/volumes/{object}/files."""

    version: VolumeVersion
    entries: list[VolumeEntry]


@dataclass(frozen=True, slots=True)
class VolumeRoutes:
    """What is in volumes."""

    objects: Objects
    volumes: Volumes

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["volumes"])
        router.get(Route.VOLUME_FILES)(self.files)
        router.get(Route.VOLUME_FILE)(self.file)
        router.get(Route.VOLUME_HEAD)(self.head)
        router.post(Route.VOLUME_COMMITS)(self.commit)
        return router

    async def files(self, request: Request, object: str, path: str = "/", recursive: bool = False) -> VolumeListing:
        """What is in a folder."""
        version, found = await self.volumes.files(await self._of(request, object), object)
        return VolumeListing(version, listed(found, path, recursive=recursive))

    async def file(self, request: Request, object: str, path: str) -> VolumeFile:
        """A file: the blobs that it consists of, in order."""
        return await self.volumes.file(await self._of(request, object), object, path)

    async def head(self, request: Request, object: str) -> VolumeHead:
        """The present version, and the blob that lists its files."""
        return await self.volumes.head(await self._of(request, object), object)

    async def commit(self, request: Request, object: str, wanted: CommitVolume) -> VolumeVersion:
        """Make a new version: all changes, or none."""
        return await self.volumes.commit(await self._of(request, object), object, wanted)

    async def _of(self, request: Request, object_id: str) -> str:
        return (await self.objects.of_id("volumes", object_id, workspace_of(request))).workspace
