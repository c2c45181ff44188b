"""/v1/blobs/{sha256}: streamed in and out."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from squall.errors import NotFoundError, RequestSizeError
from squall.http_api.routes import Route
from squall_gateway.api.requests import exchange_of
from squall_gateway.blobs import Blobs
from squall_gateway.bodies import chunks

BINARY = "application/octet-stream"


@dataclass(frozen=True)
class StoredBlob:
    """PUT /v1/blobs/{sha256}."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class BlobRoutes:
    """Bytes by their hash."""

    blobs: Blobs
    limit_bytes: int

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["blobs"])
        router.put(Route.BLOB)(self.put)
        router.get(Route.BLOB, response_class=StreamingResponse)(self.get)
        router.head(Route.BLOB, response_class=Response)(self.head)
        return router

    async def put(self, request: Request, sha256: str) -> StoredBlob:
        """Store the body if its SHA-256 is the one in the path. Repeating it is nothing."""
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > self.limit_bytes:
            raise RequestSizeError(f"a blob of {announced} bytes; the limit is {self.limit_bytes}")
        size = await self.blobs.put(sha256, chunks(exchange_of(request).receive))
        return StoredBlob(sha256, size)

    async def get(self, sha256: str) -> StreamingResponse:
        """The blob."""
        size, content = await self.blobs.get(sha256)
        return StreamingResponse(content, media_type=BINARY, headers={"content-length": str(size)})

    async def head(self, sha256: str) -> Response:
        """Whether it is there, and how large it is."""
        size = await self.blobs.size(sha256)
        if size is None:
            raise NotFoundError(f"there is no blob {sha256}")
        return Response(media_type=BINARY, headers={"content-length": str(size)})
