"""Request bodies and query strings of the call path: read by hand, with limits."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl

from squall.errors import InvalidError, RequestSizeError
from squall.http_api.protocol import frames
from squall.spec import CHUNK_INPUTS
from squall_gateway.waits import Receive

MAX_WAIT_S = 60.0
"""Longest time that a request may wait for a result: proxies cut idle connections after about a minute."""


class ClientGone(Exception):
    """The client went away before its request was complete."""


async def chunks(receive: Receive) -> AsyncIterator[bytes]:
    """The body as it comes. Raises `ClientGone` when it is cut."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        more = message.get("more_body", False)
        if body := message.get("body", b""):
            yield body


@asynccontextmanager
async def leaving(receive: Receive) -> AsyncIterator[asyncio.Event]:
    """An event that is set when the client goes away while the block runs. A body that is unread is thrown away."""
    gone = asyncio.Event()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    watching = asyncio.get_running_loop().create_task(watch())
    try:
        yield gone
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def whole(receive: Receive, limit_bytes: int) -> bytes:
    """The whole body. Raises `RequestSizeError` as soon as it is too large."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        _check_size(len(body), limit_bytes)
        return body
    parts, size = [message.get("body", b"")], len(message.get("body", b""))
    if message["type"] == "http.disconnect":
        raise ClientGone
    async for part in chunks(receive):
        parts.append(part)
        size += len(part)
        _check_size(size, limit_bytes)
    return b"".join(parts)


def _check_size(size: int, limit_bytes: int) -> None:
    if size > limit_bytes:
        raise RequestSizeError(
            f"a request body of more than {limit_bytes} bytes",
            fix="Upload larger payloads with PUT /v1/blobs first and send their reference.",
        )


def parts(frame: frames.Frame) -> list[bytes]:
    """The payloads that a frame has one after the other, by its `sizes`. Raises `InvalidError`, `RequestSizeError`."""
    sizes, payload = frame.meta.get("sizes"), frame.payload
    if not isinstance(sizes, list) or any(type(size) is not int or size < 0 for size in sizes):
        raise InvalidError("the frame needs `sizes`, a list of whole numbers")
    if len(sizes) > CHUNK_INPUTS:
        raise RequestSizeError(f"more than {CHUNK_INPUTS} inputs in one frame", fix="Send fewer inputs at once.")
    if sum(sizes) != len(payload):
        raise InvalidError("the sizes of a frame do not add up to its payload")
    found, start = [], 0
    for size in sizes:
        found.append(payload[start : start + size])
        start += size
    return found


def query_values(query: bytes) -> dict[str, str]:
    """The last value of each name."""
    if not query:
        return {}
    text = query.decode("latin-1")
    if "%" in text or "+" in text:
        return dict(parse_qsl(text, keep_blank_values=True))
    # Nearly always `wait=55`: parse_qsl takes 8 us for it.
    return dict(pair.partition("=")[::2] for pair in text.split("&"))


def wait_s(values: dict[str, str]) -> float:
    """The query's `wait`, bounded. Raises `InvalidError`."""
    return min(MAX_WAIT_S, number(values, "wait", 0.0))


def number(values: dict[str, str], name: str, default: float) -> float:
    """A number of 0 or more. Raises `InvalidError`."""
    text = values.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not math.isfinite(value) or value < 0:
        raise InvalidError(f"{name} must be a number of 0 or more, got {text!r}")
    return value


def integer(values: dict[str, str], name: str, default: int) -> int:
    """A whole number of 0 or more. Raises `InvalidError`."""
    text = values.get(name, "")
    if not text:
        return default
    if not text.isdigit() or len(text) > 18:
        raise InvalidError(f"{name} must be a whole number of 0 or more, got {text!r}")
    return int(text)
