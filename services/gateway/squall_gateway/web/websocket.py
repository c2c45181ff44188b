"""Forwarding one WebSocket: the client's messages as frames to the container and back. Who speaks the protocol with the
client is uvicorn; with a web server in a container it is `server_socket`."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from squall.http_api.protocol import frames
from squall_gateway.waits import Receive
from squall_gateway.web.forward import Send, answer_headers
from squall_gateway.web.upstream import Upstream

MAX_REASON = 40
"""Characters: a close frame has room for 123 bytes."""
CLOSE_CODES = frozenset((1000, 1001, 1002, 1003, *range(1007, 1015)))
INTERNAL_ERROR, SERVICE_RESTART = 1011, 1012


class Link(Protocol):
    """The container's side of a WebSocket."""

    async def receive(self) -> frames.Frame | None:
        """ACCEPT, then messages, then CLOSE; None when the container is gone."""

    async def send(self, kind: int, meta: dict[str, Any], payload: bytes = b"") -> None:
        """A message, or CLOSE."""


class FrameLink:
    """A container that speaks frames."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def receive(self) -> frames.Frame | None:
        """What the app says."""
        return await self._upstream.receive()

    async def send(self, kind: int, meta: dict[str, Any], payload: bytes = b"") -> None:
        """A message, or CLOSE."""
        self._upstream.send(kind, meta, payload)
        await self._upstream.drain()


async def websocket(
    link: Link, receive: Receive, send: Send, timeout_s: float, leave: asyncio.Future[None] | None = None
) -> bool:
    """One WebSocket, from the handshake to its end; False if the app refused it. `leave`: its container is to end, the
    client shall come again."""
    loop = asyncio.get_running_loop()
    down = loop.create_task(_to_client(link, send))
    up = loop.create_task(_to_container(link, receive))
    try:
        ends: list[asyncio.Future[Any]] = [down, up] if leave is None else [down, up, leave]
        done, _ = await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for end in done:
            end.result()
        if down not in done and up not in done:
            code, reason = (SERVICE_RESTART, "connect again") if done else (INTERNAL_ERROR, "the function's timeout")
            await link.send(frames.Web.CLOSE, {"code": code, "reason": reason})
            await send({"type": "websocket.close", "code": code, "reason": reason})
        return down.result() if down in done else True
    finally:
        down.cancel()
        up.cancel()
        await asyncio.gather(down, up, return_exceptions=True)


async def _to_container(link: Link, receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            meta = {"code": message.get("code", 1005), "reason": message.get("reason") or ""}
            await link.send(frames.Web.CLOSE, meta)
            return
        text = message.get("text")
        if text is not None:
            await link.send(frames.Web.TEXT, {}, text.encode())
        else:
            await link.send(frames.Web.BINARY, {}, message["bytes"])


async def _to_client(link: Link, send: Send) -> bool:
    """Whether it was accepted."""
    accepted = False
    while True:
        frame = await link.receive()
        if frame is None:
            await send({"type": "websocket.close", "code": INTERNAL_ERROR, "reason": "the container ended"})
            return accepted
        if frame.kind == frames.Web.TEXT:
            await send({"type": "websocket.send", "text": frame.payload.decode()})
        elif frame.kind == frames.Web.BINARY:
            await send({"type": "websocket.send", "bytes": frame.payload})
        elif frame.kind == frames.Web.ACCEPT:
            headers, chosen = answer_headers(frame.meta["headers"]), frame.meta["subprotocol"]
            answer_headers([("sec-websocket-protocol", chosen or "")])
            await send({"type": "websocket.accept", "subprotocol": chosen, "headers": headers})
            accepted = True
        else:
            code, reason = sendable(frame.meta.get("code")), str(frame.meta.get("reason", ""))[:MAX_REASON]
            await send({"type": "websocket.close", "code": code, "reason": reason})
            return accepted


def sendable(code: object) -> int:
    """The code itself if it may stand in a close frame."""
    valid = isinstance(code, int) and (code in CLOSE_CODES or 3000 <= code < 5000)
    return code if valid else INTERNAL_ERROR  # type: ignore[return-value]  # `valid` says that it is a number
