"""/v1/images and /v1/image-names: what was built, and what it is called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from squall.http_api import ImageInfo, Route
from squall_gateway.api.requests import Lines, exchange_of, workspace_of
from squall_gateway.feeds import Feed
from squall_gateway.image_records import ImageRecords, check_image_id
from squall_gateway.logs import LogQuery, Logs, as_line


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

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["images"])
        router.get(Route.IMAGES)(self.all)
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

    async def named(self, request: Request, name: str, environment: str = "main") -> ImageInfo:
        """The image that a name means."""
        return await self.records.named(name, workspace_of(request), environment)

    async def publish(self, request: Request, name: str, wanted: PublishImage, environment: str = "main") -> ImageInfo:
        """Let a name mean an image."""
        return await self.records.publish(name, wanted.image, workspace_of(request), environment)

    async def lines(self, request: Request, image: str) -> Response:
        """What its builds printed, as far as it is kept."""
        query = LogQuery(app=check_image_id(image), workspace=workspace_of(request))
        return Lines(Feed(exchange_of(request), self.draining), self._lines(query))

    async def _lines(self, query: LogQuery) -> AsyncGenerator[bytes, None]:
        async with aclosing(self.logs.history(query)) as entries:
            async for entry in entries:
                yield as_line(entry)
