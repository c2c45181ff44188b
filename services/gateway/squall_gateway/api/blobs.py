"""/v1/blobs/{sha256}: streamed in and out. Each workspace has its own."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from squall.errors import NotFoundError, RequestSizeError
from squall.http_api.protocol import Header, blob_ref
from squall.http_api.routes import Route
from squall_gateway.api.requests import exchange_of
from squall_gateway.auth import SERVICE
from squall_gateway.blob_places import BlobPlaces
from squall_gateway.blobs import Blobs, check_sha256
from squall_gateway.bodies import chunks

BINARY = "application/octet-stream"
_WORKSPACE = Header.WORKSPACE.lower().encode()


@dataclass(frozen=True)
class StoredBlob:
    """PUT /v1/blobs/{sha256}."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class BlobRoutes:
    """Bytes by their hash, of the token's workspace. Agents and builders, which serve all, say whose record names the
    blob."""

    blobs: BlobPlaces
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
        workspace = _workspace_of(request)
        # An agent of the release before: its records are looked for where all blobs were.
        place = self.blobs.older if workspace is None else self.blobs.of(workspace)
        size = await place.put(sha256, chunks(exchange_of(request).receive))
        return StoredBlob(sha256, size)

    async def get(self, request: Request, sha256: str) -> StreamingResponse:
        """The blob."""
        size, content = await (await self._place(request, sha256)).get(sha256)
        return StreamingResponse(content, media_type=BINARY, headers={"content-length": str(size)})

    async def head(self, request: Request, sha256: str) -> Response:
        """Whether it is there, and how large it is."""
        size = await (await self._place(request, sha256)).size(sha256)
        if size is None:
            raise NotFoundError(f"there is no blob {sha256}")
        return Response(media_type=BINARY, headers={"content-length": str(size)})

    async def _place(self, request: Request, sha256: str) -> Blobs:
        """Where to look."""
        check_sha256(sha256)
        workspace = _workspace_of(request)
        if workspace is None:
            return await self.blobs.anywhere(sha256)
        if exchange_of(request).token.scope == SERVICE:
            await self.blobs.recorded(workspace, [blob_ref(sha256, 0)])
        return self.blobs.of(workspace)


def _workspace_of(request: Request) -> str | None:
    """Whose blobs are meant; None: a service does not say it."""
    exchange = exchange_of(request)
    if exchange.token.scope != SERVICE:
        return exchange.token.workspace
    named = exchange.headers.get(_WORKSPACE)
    return None if named is None else named.decode("latin-1")
