"""One HTTP request through an ASGI app: `scope`, `receive` and `send` made of frames."""

from __future__ import annotations

import asyncio
import sys
import traceback
from typing import Any, Callable

from squall_runner.frames import Web, encode
from squall_runner.web.line import Line

PIECE_BYTES = 1 << 20
"""Of a body in one frame."""
_END = encode(Web.END, {})
_DISCONNECT = {"type": "http.disconnect"}


def scope_of(kind: str, sent: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """ASGI's scope from what the gateway sent."""
    scope: dict[str, Any] = {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        **sent,
        "raw_path": sent["raw_path"].encode("latin-1"),
        "query_string": sent["query_string"].encode("latin-1"),
        "headers": pairs_of(sent["headers"]),
        "client": tuple(sent["client"]) if sent.get("client") else None,
        "server": tuple(sent["server"]) if sent.get("server") else None,
        "state": dict(state),
    }
    return scope


def pairs_of(headers: Any) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI has them."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def texts_of(headers: Any) -> list[tuple[str, str]]:
    """Headers as frames have them."""
    return [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in headers]


class AppBroke(Exception):
    """An app used `send` in an order that ASGI does not allow, or returned too early."""


class HttpExchange:
    """One request and its answer."""

    def __init__(self, line: Line, scope: dict[str, Any], state: dict[str, Any]) -> None:
        self._line = line
        self._scope = scope_of("http", scope, state)
        self._read_all = False
        self._head: dict[str, Any] = {}
        self._started = False
        self._ended = False
        self._over = asyncio.Event()

    @property
    def answered(self) -> bool:
        """The answer is complete."""
        return self._ended

    async def run(self, app: Callable[..., Any]) -> None:
        """To the end of the app. Never raises for what it does."""
        try:
            await app(self._scope, self._receive, self._send)
            if not self._ended:
                raise AppBroke("the app returned before its answer was complete")
        except asyncio.CancelledError:
            self._fail("the app was cancelled")
            raise
        except BaseException as error:  # noqa: BLE001  # SystemExit of user code ends its request, not the container
            if not (self._line.gone and isinstance(error, (AppBroke, OSError))):
                traceback.print_exc(file=sys.stderr)
            self._fail(type(error).__name__)

    def _fail(self, reason: str) -> None:
        if self._ended:
            return
        if self._started:
            self._line.abort()
        else:
            self._line.send_now(Web.FAIL, {"reason": reason})

    async def _receive(self) -> dict[str, Any]:
        if self._read_all or self._ended:
            # Without waiting if it is so already: Starlette's `is_disconnected` asks, and cancels at the first wait.
            if not self._ended and not self._line.gone:
                await self._until_gone()
            return _DISCONNECT
        frame = await self._line.receive()
        if frame is None:
            return _DISCONNECT
        self._read_all = frame.kind == Web.END
        return {"type": "http.request", "body": frame.payload, "more_body": not self._read_all}

    async def _until_gone(self) -> None:
        """The body is complete: the next that can be heard is that nobody listens, or that all is said."""
        loop = asyncio.get_running_loop()
        gone = loop.create_task(self._line.receive())
        over = loop.create_task(self._over.wait())
        try:
            await asyncio.wait([gone, over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            over.cancel()

    async def _send(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            if self._head:
                raise AppBroke("the app began its answer twice")
            self._head = {"status": int(message["status"]), "headers": texts_of(message.get("headers", ()))}
        elif kind == "http.response.body":
            await self._send_body(message)
        else:
            raise AppBroke(f"squall does not know the ASGI message {kind!r}")

    async def _send_body(self, message: dict[str, Any]) -> None:
        if not self._head or self._ended:
            raise AppBroke("a body without a head, or after its end")
        if self._line.gone:
            raise OSError("the client is gone")
        parts = []
        if not self._started:
            self._started = True
            parts.append(encode(Web.START, self._head))
        body, more = message.get("body", b""), message.get("more_body", False)
        for start in range(0, len(body), PIECE_BYTES):
            parts.append(encode(Web.DATA, {}, bytes(body[start : start + PIECE_BYTES])))
            if start + PIECE_BYTES < len(body):
                await self._write(parts)
        if not more:
            self._ended = True
            parts.append(_END)
        await self._write(parts)
        if not more:
            self._over.set()

    async def _write(self, parts: list[bytes]) -> None:
        """Together: each write wakes up the agent and the gateway."""
        self._line.write(b"".join(parts))
        parts.clear()
        await self._line.drain()
