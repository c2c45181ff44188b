"""Forwarding one HTTP request: ASGI's messages of the client's side, frames on the container's.

Owns what of the headers travels, and what a client sees when a container breaks.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from squall.errors import (
    ContainerBrokeError,
    FunctionTimeoutError,
    InvalidError,
    RequestSizeError,
    SquallError,
    WebFunctionError,
)
from squall.http_api.protocol import frames
from squall_gateway.bodies import chunks, whole
from squall_gateway.waits import Receive
from squall_gateway.web.upstream import Upstream

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
MAX_BODY_BYTES = 4 << 30
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
SMALL_BODY_BYTES, SMALL_BODY_S = 64 * 1024, 60.0
SECRETS = frozenset((b"modal-key", b"modal-secret", b"squall-key", b"squall-secret"))
"""Of the proxy, not of the app."""
_REPLACED = frozenset((b"forwarded", b"x-real-ip", b"traceparent"))
_KEPT_BACK = HOP_BY_HOP | SECRETS | _REPLACED | {b"proxy-authorization"}
_NEVER_OF_A_HOP = frozenset((b"host", b"content-length", b"content-type", b"close", b"keep-alive"))
"""What a client cannot have dropped by naming it in `Connection`."""
_END = frames.encode(frames.Web.END, {})
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_CONTROLS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
OURS = (b"x-squall-", b"x-forwarded-")
_PASSED_ON = ("http_version", "method", "path", "query_string", "scheme", "client", "server", "subprotocols")


class Cut(Exception):
    """The answer had begun when its container broke: the connection is cut, so that nobody takes it for whole."""


def scope_of(scope: MutableMapping[str, Any], root_path: str, traceparent: str = "") -> dict[str, Any]:
    """ASGI's scope as it travels: texts instead of bytes. Who the client is says its connection, or a proxy that is
    trusted (then the scope has it already), and never a header that anybody may send."""
    sent: dict[str, Any] = {name: scope[name] for name in _PASSED_ON if name in scope}
    root = scope["path"] == root_path  # `.../web/<name>`: the app knows that as its `/`
    sent["path"] = scope["path"] + "/" * root
    sent["query_string"] = scope["query_string"].decode("latin-1")
    sent["raw_path"] = scope["raw_path"].decode("latin-1") + "/" * root
    sent["root_path"] = root_path
    kept_back = _kept_back(scope["headers"])
    headers = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in scope["headers"]
        if name not in kept_back and not name.startswith(OURS)
    ]
    if client := scope.get("client"):
        headers.append(("x-forwarded-for", client[0]))
    headers.append(("x-forwarded-proto", (scope.get("scheme") or "http").replace("ws", "http")))
    if traceparent:
        headers.append(("traceparent", traceparent))
    sent["headers"] = headers
    return sent


def _kept_back(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Headers that end here: ours, and those that the client says are for this connection alone."""
    named: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            named.update(token.strip() for token in value.lower().split(b","))
    named -= _NEVER_OF_A_HOP
    return _KEPT_BACK | named if named else _KEPT_BACK


async def small_body(headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
    """The whole body if it is small: then nobody has to wait for it later, and a slow client occupies no container.
    None: it is large, or of unknown length, and not read yet. Raises `ClientGone`."""
    length = headers.get(b"content-length")
    if b"transfer-encoding" in headers or int(length or 0) > SMALL_BODY_BYTES:
        return None
    if not length or length == b"0":
        return b""
    try:
        async with asyncio.timeout(SMALL_BODY_S):
            return await whole(receive, SMALL_BODY_BYTES)
    except TimeoutError as error:
        raise InvalidError(f"the body of the request was not here within {SMALL_BODY_S:g} s") from error


def first_open(opening: dict[str, Any]) -> bytes:
    """What every container gets first."""
    return frames.encode(frames.Web.OPEN, opening)


def first_frames(opening: dict[str, Any], body: bytes | None) -> bytes:
    """What a container that speaks frames gets at once."""
    head = first_open(opening)
    if body is None:
        return head
    data = frames.encode(frames.Web.DATA, {}, body) if body else b""
    return head + data + _END


class Exchange:
    """One request and its answer, between a client and a container. The head of the request is on its way already,
    and its body, if it is small. That the client leaves is not noticed here but by `Leaving`."""

    def __init__(self, upstream: Upstream, receive: Receive, send: Send, *, body_sent: bool) -> None:
        self._upstream = upstream
        self._receive = receive
        self._send = send
        self.body_sent = body_sent
        """The container has all of it, as far as we are concerned."""
        self.begun = False
        """The client has the head of the answer."""

    async def run(self, timeout_s: float) -> None:
        """To its end. Raises `Cut` when an answer cannot be completed, `SquallError` when it has not begun."""
        try:
            async with asyncio.timeout(timeout_s):
                if self.body_sent:
                    await self.read_answer()
                else:
                    await self._both()
        except TimeoutError as error:
            if self.begun:
                raise Cut(f"the function's timeout of {timeout_s:g} s has passed") from error
            raise FunctionTimeoutError(
                f"the request took longer than the function's timeout of {timeout_s:g} s", timeout_s=timeout_s
            ) from error

    def give_to(self, send: Send) -> None:
        """The answer goes to another client than the one that asked."""
        self._send = send

    async def _both(self) -> None:
        """Body and answer at the same time; an answer that is complete ends both."""
        loop = asyncio.get_running_loop()
        body = loop.create_task(self.send_body())
        reading = loop.create_task(self.read_answer())
        try:
            await asyncio.wait([body, reading], return_when=asyncio.FIRST_COMPLETED)
            if body.done():
                body.result()
            await reading
        finally:
            for task in (body, reading):
                task.cancel()
            await asyncio.gather(body, reading, return_exceptions=True)

    async def send_body(self) -> None:
        """What the client still sends. Raises `ClientGone`."""
        async for piece in chunks_within(self._receive, MAX_BODY_BYTES):
            self.pass_on(piece)
            await self._upstream.drain()
        self.pass_on(b"")
        self.body_sent = True

    def pass_on(self, piece: bytes) -> None:
        """A piece of the body, or its end."""
        raise NotImplementedError

    async def read_answer(self) -> None:
        """The container's answer, to its end."""
        raise NotImplementedError


async def chunks_within(receive: Receive, limit_bytes: int) -> AsyncIterator[bytes]:
    """The pieces of a body. Raises `RequestSizeError`, `ClientGone`."""
    size = 0
    async for piece in chunks(receive):
        size += len(piece)
        if size > limit_bytes:
            raise RequestSizeError(f"a request may have {limit_bytes} bytes")
        yield piece


class FrameExchange(Exchange):
    """With a container that speaks frames."""

    def pass_on(self, piece: bytes) -> None:
        """A piece of the body, or its end."""
        self._upstream.send(frames.Web.DATA if piece else frames.Web.END, {}, piece)

    async def read_answer(self) -> None:
        upstream = self._upstream
        head = await upstream.receive()
        if head is None or head.kind != frames.Web.START:
            raise broke(head.meta.get("reason", "") if head is not None and head.kind == frames.Web.FAIL else "")
        frame = await upstream.receive()
        if frame is None:
            raise broke("")
        await self._begin(head)
        while frame is not None:
            last = frame.kind == frames.Web.END
            then = None if last else upstream.receive_now()
            if then is not None and then.kind == frames.Web.END:
                last = True
            await self._send({"type": "http.response.body", "body": frame.payload, "more_body": not last})
            if last:
                return
            frame = then if then is not None else await upstream.receive()
        raise Cut("the container ended in the middle of its answer")

    async def _begin(self, head: frames.Frame) -> None:
        status, headers = head.meta["status"], answer_headers(head.meta["headers"])
        if not isinstance(status, int) or not 200 <= status < 600:
            raise WebFunctionError(f"the function answered with {status!r:.40}, which is no status of an answer")
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


def answer_headers(told: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """An answer's headers as they are sent on. Raises `WebFunctionError` for those that a proxy between us and the
    client could read as the end of the head, or as another length of the body: behind it are other tenants' answers."""
    headers, lengths = [], set()
    for text, content in told:
        name, value = text.encode("latin-1").lower(), content.encode("latin-1")
        if not _NAME.fullmatch(name) or _CONTROLS.search(value):
            raise WebFunctionError(f"the function answered with the header {text[:40]!r}, which HTTP does not allow")
        if name == b"content-length":
            lengths.add(value.strip())
        if name not in HOP_BY_HOP:
            headers.append((name, value))
    if len(lengths) > 1 or not all(length.isdigit() for length in lengths):
        raise WebFunctionError("the function answered with a content-length that is not one number")
    return headers


def broke(reason: str) -> SquallError:
    """No answer came."""
    if reason:
        return WebFunctionError(f"the function raised {reason}")
    return ContainerBrokeError("the container ended before it answered")
