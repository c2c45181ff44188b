"""/v1/volume-blocks and /v1/volume-collections: what volumes of a workspace consist of."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from squall.errors import NotFoundError, RequestSizeError
from squall.http_api.routes import Route
from squall.http_api.storage import BLOCK_BYTES, CollectBlocks, CollectedBlocks
from squall_gateway.api.blobs import BINARY, StoredBlob
from squall_gateway.api.requests import exchange_of, workspace_of
from squall_gateway.blobs import check_sha256
from squall_gateway.bodies import chunks
from squall_gateway.collecting import Collector
from squall_gateway.volume_blocks import Rooms


@dataclass(frozen=True, slots=True)
class VolumeBlockRoutes:
    """Blocks by their hash, of the token's workspace."""

    rooms: Rooms
    collector: Collector

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["volumes"])
        router.put(Route.VOLUME_BLOCK)(self.put)
        router.get(Route.VOLUME_BLOCK, response_class=StreamingResponse)(self.get)
        router.head(Route.VOLUME_BLOCK, response_class=Response)(self.head)
        router.post(Route.VOLUME_COLLECTIONS)(self.collect)
        return router

    async def put(self, request: Request, sha256: str) -> StoredBlob:
        """Store the body if its SHA-256 is the one in the path. Repeating it is nothing."""
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > BLOCK_BYTES:
            raise RequestSizeError(f"a block of {announced} bytes; the limit is {BLOCK_BYTES}")
        room = self.rooms.of(workspace_of(request))
        size = await room.put(check_sha256(sha256), chunks(exchange_of(request).receive))
        return StoredBlob(sha256, size)

    async def get(self, request: Request, sha256: str) -> StreamingResponse:
        """The block, or list of files."""
        size, content = await self.rooms.asked(workspace_of(request), sha256)
        return StreamingResponse(content, media_type=BINARY, headers={"content-length": str(size)})

    async def head(self, request: Request, sha256: str) -> Response:
        """Whether it is there, and stays for a while: then it need not be uploaded again."""
        size = await self.rooms.of(workspace_of(request)).offered(sha256)
        if size is None:
            raise NotFoundError(f"there is no block {sha256}")
        return Response(media_type=BINARY, headers={"content-length": str(size)})

    async def collect(self, request: Request, wanted: CollectBlocks) -> CollectedBlocks:
        """Remove blocks that no version has needed for the grace period."""
        return await self.collector.collect(workspace_of(request), dry_run=wanted.dry_run)
