"""Forwarding one HTTP request: ASGI's messages of the client's side, frames on the container's.

Owns what of the headers travels, and what a client sees when a container breaks.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from squall.errors import ContainerBrokeError, FunctionTimeoutError, RequestSizeError, SquallError, WebFunctionError
from squall.http_api import frames
from squall_gateway.waits import Receive
from squall_gateway.web.upstream import Upstream

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
MAX_BODY_BYTES = 4 << 30
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
SECRETS = frozenset((b"modal-key", b"modal-secret", b"squall-key", b"squall-secret"))
"""Of the proxy, not of the app."""
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_CONTROLS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
OURS = b"x-squall-"
_PASSED_ON = ("http_version", "method", "path", "query_string", "scheme", "client", "server", "subprotocols")


class Cut(Exception):
    """The answer had begun when its container broke: the connection is cut, so that nobody takes it for whole."""


class ClientLeft(Exception):
    """Nobody waits for an answer any more."""


def scope_of(scope: MutableMapping[str, Any], root_path: str) -> dict[str, Any]:
    """ASGI's scope as it travels: texts instead of bytes."""
    sent: dict[str, Any] = {name: scope[name] for name in _PASSED_ON if name in scope}
    root = scope["path"] == root_path  # `.../web/<name>`: the app knows that as its `/`
    sent["path"] = scope["path"] + "/" * root
    sent["query_string"] = scope["query_string"].decode("latin-1")
    sent["raw_path"] = scope["raw_path"].decode("latin-1") + "/" * root
    sent["root_path"] = root_path
    sent["headers"] = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in scope["headers"]
        if name not in HOP_BY_HOP and name not in SECRETS and not name.startswith(OURS)
    ]
    return sent


class Exchange:
    """One request and its answer, between a client and a container."""

    def __init__(self, upstream: Upstream, receive: Receive, send: Send) -> None:
        self._upstream = upstream
        self._receive = receive
        self._send = send
        self.begun = False
        """The client has the head of the answer."""

    async def run(self, timeout_s: float) -> None:
        """To its end. Raises `Cut` when an answer cannot be completed, `SquallError` when it has not begun."""
        loop = asyncio.get_running_loop()
        body = loop.create_task(self.send_body())
        reading = loop.create_task(self.read_answer())
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wait([body, reading], return_when=asyncio.FIRST_COMPLETED)
                if body.done() and not reading.done():
                    body.result()
                await reading
        except TimeoutError as error:
            if self.begun:
                raise Cut(f"the function's timeout of {timeout_s:g} s has passed") from error
            raise FunctionTimeoutError(
                f"the request took longer than the function's timeout of {timeout_s:g} s", timeout_s=timeout_s
            ) from error
        except ClientLeft:
            pass
        finally:
            for task in (body, reading):
                task.cancel()
            await asyncio.gather(body, reading, return_exceptions=True)

    async def send_body(self) -> None:
        """The client's body; then wait for what may still come from it, which is its leaving: raises `ClientLeft`."""
        raise NotImplementedError

    async def read_answer(self) -> None:
        """The container's answer, to its end."""
        raise NotImplementedError


class FrameExchange(Exchange):
    """With a container that speaks frames; the head of the request is on its way already."""

    async def send_body(self) -> None:
        sent, more = 0, True
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientLeft
            if not more:
                continue
            piece, more = message.get("body", b""), message.get("more_body", False)
            sent += len(piece)
            if sent > MAX_BODY_BYTES:
                raise RequestSizeError(f"a request may have {MAX_BODY_BYTES} bytes")
            if piece:
                self._upstream.send(frames.Web.DATA, {}, piece)
            if not more:
                self._upstream.send(frames.Web.END, {})
            await self._upstream.drain()

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
