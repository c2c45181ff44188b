"""One WebSocket through an ASGI app: messages are frames, the gateway speaks the protocol."""

from __future__ import annotations

import asyncio
import sys
import traceback
from typing import Any, Callable

from squall_runner.frames import Web
from squall_runner.web.http import AppBroke, scope_of, texts_of
from squall_runner.web.line import Line

ABNORMAL, INTERNAL_ERROR = 1006, 1011


class WebSocketExchange:
    """From the handshake to the close."""

    def __init__(self, line: Line, scope: dict[str, Any], state: dict[str, Any]) -> None:
        self._line = line
        self._scope = scope_of("websocket", scope, state)
        self._told = False
        self._accepted = False
        self._closed = False

    async def run(self, app: Callable[..., Any]) -> None:
        """To the end of the app. Never raises for what it does."""
        try:
            await app(self._scope, self._receive, self._send)
            self._close(1000 if self._accepted else INTERNAL_ERROR, "")
        except asyncio.CancelledError:
            self._close(INTERNAL_ERROR, "the app was cancelled")
            raise
        except BaseException as error:  # noqa: BLE001  # as for HTTP
            if not self._closed and not self._line.gone:
                traceback.print_exc(file=sys.stderr)
            self._close(INTERNAL_ERROR, type(error).__name__)

    def _close(self, code: int, reason: str) -> None:
        if not self._closed:
            self._closed = True
            self._line.send_now(Web.CLOSE, {"code": code, "reason": reason})

    async def _receive(self) -> dict[str, Any]:
        if not self._told:
            self._told = True
            return {"type": "websocket.connect"}
        frame = await self._line.receive()
        if frame is None:
            self._closed = True
            return {"type": "websocket.disconnect", "code": ABNORMAL, "reason": ""}
        if frame.kind == Web.TEXT:
            return {"type": "websocket.receive", "text": frame.payload.decode()}
        if frame.kind == Web.BINARY:
            return {"type": "websocket.receive", "bytes": frame.payload}
        self._closed = True
        return {"type": "websocket.disconnect", **frame.meta}

    async def _send(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if self._closed or self._line.gone:
            raise OSError("the WebSocket is closed")
        if kind == "websocket.accept":
            self._accepted = True
            meta = {
                "subprotocol": message.get("subprotocol"),
                "headers": texts_of(message.get("headers") or ()),
            }
            self._line.send_now(Web.ACCEPT, meta)
        elif kind == "websocket.send":
            text = message.get("text")
            if text is not None:
                self._line.send_now(Web.TEXT, {}, text.encode())
            else:
                self._line.send_now(Web.BINARY, {}, bytes(message["bytes"]))
            await self._line.drain()
        elif kind == "websocket.close":
            self._close(int(message.get("code", 1000)), message.get("reason") or "")
        else:
            raise AppBroke(f"squall does not know the ASGI message {kind!r}")
