"""Results that lie in the blob store, put into the answer itself while they are of moderate size.

The caller is spared a second request: 1 MiB comes back in half the time. Bounded: beyond `AT_ONCE` answers at the same
time, and beyond `EMBED_BYTES`, the caller fetches the blob itself.
"""

from __future__ import annotations

from squall.errors import NotFoundError
from squall.http_api.protocol import parse_blob_ref
from squall_contracts.calls import CallResult
from squall_gateway.answers import FRAMES, result_frame, result_head, send_large, send_whole
from squall_gateway.blob_places import BlobPlaces
from squall_gateway.edge import Exchange

EMBED_BYTES = 2 << 20
AT_ONCE = 32
"""64 MiB of memory at most, however slowly they are read."""


class ResultAnswers:
    """Answers with one result."""

    def __init__(self, blobs: BlobPlaces) -> None:
        self._blobs = blobs
        self._under_way = 0

    async def send(self, exchange: Exchange, record: CallResult) -> None:
        """The RESULT frame, with the blob's bytes as its payload where that is sensible."""
        if record.blob is None or self._under_way >= AT_ONCE or parse_blob_ref(record.blob)[1] > EMBED_BYTES:
            await self._blobs.recorded(record.workspace, [record.blob])
            await send_whole(exchange.send, 200, result_frame(record), (FRAMES,))
            return
        self._under_way += 1
        try:
            content = await self._content(record.workspace, record.blob)
            await send_large(exchange.send, result_head(record, len(content)), content, (FRAMES,))
        finally:
            self._under_way -= 1

    async def _content(self, workspace: str, blob: str) -> bytes:
        """The bytes of a blob; nothing when it is gone, which the caller finds out in its own words."""
        try:
            return await self._blobs.read(workspace, parse_blob_ref(blob)[0])
        except NotFoundError:
            return b""
