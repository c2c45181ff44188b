"""/v1/images and /v1/image-names: what was built, and what it is called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from squall.errors import InvalidError
from squall.http_api.images import ImageInfo, PrunedImages, PruneImages
from squall.http_api.routes import Route
from squall_gateway.api.requests import Lines, exchange_of, workspace_of
from squall_gateway.environments import Environments
from squall_gateway.feeds import Feed
from squall_gateway.image_records import ImageRecords
from squall_gateway.logs import LogQuery, Logs, as_line
from squall_gateway.pruning import Pruning


@dataclass(frozen=True)
class PublishImage:
    """PUT /v1/image-names/{name}."""

    image: str


@dataclass(frozen=True)
class ImageList:
    """GET /v1/images."""

    images: list[ImageInfo]


@dataclass(frozen=True, slots=True)
class ImageRoutes:
    """Reads of images, and their names."""

    records: ImageRecords
    logs: Logs
    draining: asyncio.Event
    environments: Environments
    pruning: Pruning

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["images"])
        router.get(Route.IMAGES)(self.all)
        router.post(Route.IMAGES_PRUNE)(self.prune)
        router.get(Route.IMAGE)(self.one)
        router.get(Route.IMAGE_LOGS, response_class=Response)(self.lines)
        router.get(Route.IMAGE_NAME)(self.named)
        router.put(Route.IMAGE_NAME)(self.publish)
        return router

    async def all(self, request: Request, environment: str = "main") -> ImageList:
        """Images of the workspace, those built last first."""
        return ImageList(await self.records.all_of(workspace_of(request), environment))

    async def one(self, request: Request, image: str, environment: str = "main") -> ImageInfo:
        """One image with its recipe."""
        return await self.records.one(image, workspace_of(request), environment)

    async def prune(self, request: Request, wanted: PruneImages) -> PrunedImages:
        """Remove images of the workspace that nothing needs: no version of an app, no call, no container, no name."""
        if not 0 <= wanted.older_than_s < float("inf"):
            raise InvalidError("older_than_s must be 0 or more")
        return await self.pruning.prune(workspace_of(request), older_than_s=wanted.older_than_s, dry_run=wanted.dry_run)

    async def named(self, request: Request, name: str, environment: str = "main") -> ImageInfo:
        """The image that a name means."""
        return await self.records.named(name, workspace_of(request), environment)

    async def publish(self, request: Request, name: str, wanted: PublishImage, environment: str = "main") -> ImageInfo:
        """Let a name mean an image."""
        await self.environments.require(environment, workspace_of(request))
        return await self.records.publish(name, wanted.image, workspace_of(request), environment)

    async def lines(self, request: Request, image: str) -> Response:
        """What its builds printed, as far as it is kept."""
        workspace = workspace_of(request)
        query = LogQuery(app=(await self.records.record(image, workspace)).image, workspace=workspace)
        return Lines(Feed(exchange_of(request), self.draining), self._lines(query))

    async def _lines(self, query: LogQuery) -> AsyncGenerator[bytes, None]:
        async with aclosing(self.logs.history(query)) as entries:
            async for entry in entries:
                yield as_line(entry)
