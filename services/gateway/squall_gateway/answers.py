"""Answers as bytes: errors, JSON, result frames. Knows ASGI's messages; decides nothing."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from squall import errors
from squall.errors import SquallError
from squall.http_api.protocol import FRAMES_CONTENT_TYPE, FrameKind, frames
from squall_bus import BusError, BusUnavailable, PublishUnknown, StreamFull
from squall_contracts.calls import CallResult
from squall_contracts.envelope import BadMessage

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
FRAMES = (b"content-type", FRAMES_CONTENT_TYPE.encode())
RETRY_AFTER_S = b"1"
SLICE_BYTES = 256 * 1024

# What the bus says, as the caller should hear it: it cannot know our streams and messages.
_INSIDE: tuple[tuple[type[SquallError], type[SquallError]], ...] = (
    (BusUnavailable, errors.ServiceError),
    (PublishUnknown, errors.ServiceError),
    (StreamFull, errors.StorageFullError),
    (BusError, errors.InternalError),
    (BadMessage, errors.InternalError),
)


def public(error: SquallError) -> SquallError:
    """The error as the catalogue of the API knows it."""
    for inside, outside in _INSIDE:
        if isinstance(error, inside):
            return outside(error.message)
    return error


def error_body(error: SquallError, request_id: str = "") -> bytes:
    """`{"error": ...}`; bytes and other things that JSON does not have become text."""
    wire = errors.to_wire(error)
    if request_id:
        wire["request"] = request_id
    return json.dumps({"error": wire}, default=str).encode()


def error_headers(error: SquallError) -> list[tuple[bytes, bytes]]:
    """Content type, and when to come back."""
    headers = [JSON]
    if error.retryable and error.http_status in (429, 502, 503, 507):
        headers.append((b"retry-after", RETRY_AFTER_S))
    return headers


async def send_whole(send: Send, status: int, body: bytes, headers: Headers = (JSON,)) -> None:
    """A complete answer."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def send_large(send: Send, head: bytes, payload: bytes, headers: Headers) -> None:
    """A complete answer that is large, its body in two pieces: each slice waits until the client has room for it."""
    length = (b"content-length", b"%d" % (len(head) + len(payload)))
    await send({"type": "http.response.start", "status": 200, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": head, "more_body": True})
    view = memoryview(payload)
    for start in range(0, len(payload), SLICE_BYTES):
        await send({"type": "http.response.body", "body": view[start : start + SLICE_BYTES], "more_body": True})
    await end_stream(send)


async def send_json(send: Send, status: int, body: Any) -> None:
    """A complete answer in JSON."""
    await send_whole(send, status, json.dumps(body).encode())


async def begin_stream(send: Send, headers: Headers = (FRAMES,)) -> None:
    """The head of an answer whose end is not known yet."""
    await send({"type": "http.response.start", "status": 200, "headers": list(headers)})


async def send_part(send: Send, body: bytes) -> None:
    """A part of a stream; returns when the client has room for more."""
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def end_stream(send: Send) -> None:
    """The end of a stream."""
    await send({"type": "http.response.body", "body": b""})


def result_frame(record: CallResult, cursor: int | None = None) -> bytes:
    """The RESULT frame of a record."""
    return frames.encode(FrameKind.RESULT, _result_meta(record, cursor), record.payload)


def result_head(record: CallResult, size: int) -> bytes:
    """The RESULT frame of a record up to its payload, which is the content of its blob."""
    return frames.encode_head(FrameKind.RESULT, _result_meta(record, None), size)


def _result_meta(record: CallResult, cursor: int | None) -> dict[str, Any]:
    """Fields that have their default value are left out."""
    meta: dict[str, Any] = {
        "call": record.call,
        "index": record.index,
        "outcome": record.outcome,
        "encoding": record.encoding,
        "attempt": record.attempt,
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "node": record.node,
        "container": record.container,
    }
    if record.blob is not None:
        meta["blob"] = record.blob
    if record.error is not None:
        meta["error"] = record.error
    if record.items is not None:
        meta["items"] = record.items
    if cursor is not None:
        meta["cursor"] = cursor
    return meta


def keepalive_frame(waiting: str) -> bytes:
    """Nothing happened; why, if we know."""
    return frames.encode(FrameKind.KEEPALIVE, {"waiting": waiting} if waiting else {})


def error_frame(error: SquallError) -> bytes:
    """The end of a stream that broke."""
    wire = errors.to_wire(public(error))
    return frames.encode(FrameKind.ERROR, json.loads(json.dumps(wire, default=str)))
