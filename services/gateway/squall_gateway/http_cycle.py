"""One request and its answer on a connection of HTTP/1.1, and the transport that both write to.

Owns how a body is handed over (in the pieces it came in, not copied into a buffer and out of it again: two copies less
of a large one) and how the head of an answer is written.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

JOIN_BYTES = 64 * 1024
UNASKED_BYTES, UNREAD_BYTES = 64 * 1024, 1 << 20
"""So much of a body waits for its handler before nothing more is read."""
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_STATUS_LINES = {code: f"HTTP/1.1 {code} {_PHRASES.get(code, '')}\r\n".encode() for code in range(100, 600)}
_WITHOUT_BODY = (204, 304)
_DISCONNECT = {"type": "http.disconnect"}


class JoinedWrites:
    """A transport whose writes of one turn of the event loop leave together.

    Head and body of an answer are written one after the other: two system calls here, and the client wakes up twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Write at the end of the turn, or now if it is much: then the transport's own back-pressure must be felt."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size > JOIN_BYTES:
            self._flush()

    def close(self) -> None:
        """Close after what was written."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            parts, self._parts, self._size = self._parts, [], 0
            if not self._transport.is_closing():
                self._transport.writelines(parts)

    def __getattr__(self, name: str) -> Any:  # whatever else a transport has
        return getattr(self._transport, name)


class Cycle(RequestResponseCycle):
    """One request and its answer."""

    parts: deque[bytes]
    """Of the body, as they came; not handed over yet."""
    unread: int
    """Bytes in `parts`."""
    limit: int
    """Of `unread`. Little until the handler asks for the body: thousands may be waiting for something else first."""
    until_close = False
    """The answer has no length, and its end is that of the connection: HTTP/1.0 has no chunks."""
    on_left: Callable[[], None] | None = None
    """Called when the client goes before its answer is complete."""

    async def receive(self) -> Any:
        """ASGI's receive."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        self.limit = UNREAD_BYTES
        if not self.disconnected and not self.response_complete:
            self.flow.resume_reading()
            await self.message_event.wait()
            if len(self.parts) < 2:
                self.message_event.clear()
        if self.disconnected or self.response_complete:
            return _DISCONNECT
        body = self.parts.popleft() if self.parts else b""
        self.unread -= len(body)
        return {"type": "http.request", "body": body, "more_body": self.more_body or bool(self.parts)}

    async def send(self, message: Any) -> None:
        """ASGI's send. Answers without a length, or with headers of their own about the connection, are uvicorn's."""
        if self.disconnected:
            return  # nobody hears it; the head was not sent, so the body that follows would pass for one
        if not self.response_started:
            if self._begin(message):
                return
            message = self._unusual(message)
        elif self.until_close:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)

    def _unusual(self, message: Any) -> Any:
        """The head of an answer that uvicorn would frame in a way that not every client understands."""
        names = {name for name, _ in message["headers"]}
        if message["status"] in _WITHOUT_BODY:  # a length there is the one that another answer would have
            return {**message, "headers": [pair for pair in message["headers"] if pair[0] != b"content-length"]}
        if self.scope["http_version"] == "1.0" and b"content-length" not in names:
            self.until_close, self.chunked_encoding = True, False
        return message

    def _begin(self, message: Any) -> bool:
        """Write the head of an answer that has nothing unusual."""
        if self.flow.write_paused or self.disconnected or not self.keep_alive or message["status"] in _WITHOUT_BODY:
            return False
        head = [_STATUS_LINES[message["status"]]]
        length = None
        for name, value in message["headers"]:
            if name == b"content-length":
                length = int(value)
            elif name in (b"connection", b"transfer-encoding"):
                return False
            head += (name, b": ", value, b"\r\n")
        text = b"".join(head)
        if length is None or text.count(b"\n") != len(message["headers"]) + 1:  # a line break is uvicorn's to refuse
            return False
        self.response_started, self.waiting_for_100_continue = True, False
        self.expected_content_length, self.chunked_encoding = length, False
        self.transport.write(text + b"\r\n")
        return True
