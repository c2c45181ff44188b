"""POST /v1/calls/{id}/inputs and GET /v1/calls/{id}/results: maps. Plain functions, see `squall_gateway.edge`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from squall.errors import InvalidError, RequestSizeError
from squall.http_api.protocol import FrameKind, Header, frames
from squall.spec import CHUNK_INPUTS, Kind
from squall_contracts.calls import CallResult
from squall_gateway.accept import Acceptor, Input
from squall_gateway.answers import FRAMES, error_frame, keepalive_frame, result_frame, send_json
from squall_gateway.bodies import chunks, integer, parts, query_values
from squall_gateway.call_headers import check_blob_ref, read_call_headers
from squall_gateway.call_spans import now_ns
from squall_gateway.edge import Exchange
from squall_gateway.feeds import Feed
from squall_gateway.metrics import Requests
from squall_gateway.pinning import Pinning
from squall_gateway.results import Results
from squall_gateway.waiting import Waiting
from squall_gateway.waits import Receive
from squall_service.failpoints import failpoint

MAX_CHUNK_BYTES = 72 << 20
"""A thousand inline payloads of 64 KiB, and their metadata."""
MAX_INDEX = 10_000_000


@dataclass(frozen=True, slots=True)
class MapRoutes:
    """Takes inputs in chunks and gives results as they come."""

    acceptor: Acceptor
    targets: Pinning
    results: Results
    waiting: Waiting
    requests: Requests
    draining: asyncio.Event

    async def post_inputs(self, exchange: Exchange, call_id: str) -> None:
        """Accept a chunk; repeating it changes nothing."""
        received_ns = now_ns(self.acceptor.clock)
        call = read_call_headers(exchange.headers, self.acceptor.bus.topology.shards, call_id)
        if call.kind is not Kind.SPAWN:
            call = call._replace(kind=Kind.MAP)
        if call.idempotency_key:
            raise InvalidError(
                f"{Header.IDEMPOTENCY_KEY} is for single calls, not for maps",
                fix="Leave the header out: the call id and the index of an input make repeated chunks harmless.",
            )
        target = await self.targets.of_chunk(call, exchange.token.workspace)
        given = await read_inputs(exchange.receive)
        accepted = await self.acceptor.accept_many(call, target, given, received_ns)
        failpoint("gateway.accepted")
        self.requests.accepted[call.kind.value] += accepted
        await send_json(exchange.send, 200, {"accepted": accepted})

    async def get_results(self, exchange: Exchange, call_id: str) -> None:
        """Results after the cursor, without end."""
        call, workspace = self.results.check(call_id), exchange.token.workspace
        cursor = integer(query_values(exchange.query), "cursor", 0)
        first = await self.results.first_record(call, workspace)
        pool = "" if first is None else first.pool
        feed = Feed(exchange, self.draining)
        await feed.run(
            self._frames(call, workspace, cursor),
            (FRAMES,),
            lambda: keepalive_frame(self.waiting.text(pool)),
            error_frame,
        )

    async def _frames(self, call: str, workspace: str, cursor: int) -> AsyncGenerator[bytes, None]:
        async with self.results.follow(call, workspace, cursor) as records:
            async for stored in records:
                record = CallResult.decode(stored.data)
                self.acceptor.loads.ended(record.pool)
                await self.acceptor.blobs.told(record.workspace, [record.blob])
                yield result_frame(record, stored.seq)


async def read_inputs(receive: Receive) -> list[Input]:
    """The INPUT frames of a body. Raises `InvalidError` for what is not one, `RequestSizeError` for too many."""
    decoder, given, size = frames.Decoder(), [], 0
    async for chunk in chunks(receive):
        size += len(chunk)
        if size > MAX_CHUNK_BYTES:
            raise RequestSizeError(f"a chunk of more than {MAX_CHUNK_BYTES} bytes", fix="Send fewer inputs at once.")
        try:
            for frame in decoder.feed(chunk):
                if frame.kind == FrameKind.INPUTS:
                    given += bulk_inputs(frame)
                else:
                    given.append(_input(frame))
        except frames.BadFrame as error:
            raise InvalidError(f"the body is not a sequence of frames: {error}") from error
        if len(given) > CHUNK_INPUTS:
            raise RequestSizeError(f"a chunk of more than {CHUNK_INPUTS} inputs", fix="Send fewer inputs at once.")
    if decoder.pending_bytes:
        raise InvalidError("the body ends in the middle of a frame")
    if len({each.index for each in given}) < len(given):
        raise InvalidError("the same input index stands twice in one chunk")
    return given


def bulk_inputs(frame: frames.Frame) -> list[Input]:
    """The inputs in an INPUTS frame. Raises `InvalidError`, `RequestSizeError`."""
    first, blobs, given = frame.meta.get("first"), frame.meta.get("blobs", {}), parts(frame)
    if type(first) is not int or not isinstance(blobs, dict):
        raise InvalidError("an INPUTS frame needs `first` (an index); `blobs` is a map")
    if not 0 <= first <= MAX_INDEX - len(given):
        raise InvalidError(f"indices from {first} are outside of 0 to {MAX_INDEX - 1}")
    references = {place: check_blob_ref(str(blobs[place])) for place in blobs}
    if any(not place.isdigit() or int(place) >= len(given) or given[int(place)] for place in references):
        raise InvalidError("`blobs` of an INPUTS frame names no empty input of it")
    return [Input(first + place, payload, references.get(str(place))) for place, payload in enumerate(given)]


def _input(frame: frames.Frame) -> Input:
    index, blob = frame.meta.get("index"), frame.meta.get("blob")
    if frame.kind != FrameKind.INPUT or type(index) is not int or not 0 <= index < MAX_INDEX:
        raise InvalidError(f"not an INPUT frame with an index from 0 to {MAX_INDEX - 1}: kind {frame.kind}, {index!r}")
    return Input(index, frame.payload, None if blob is None else check_blob_ref(str(blob)))
