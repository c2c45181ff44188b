"""HTTP/1.1 on one connection: uvicorn's protocol with the parts replaced that each request pays for.

Connections, keep-alive, pipelining and shutdown are uvicorn's. Ours are what becomes of a request's head, how its body
is handed over (in the pieces it came in, not copied into a buffer and out of it again: two copies less of a large one)
and how the head of an answer is written.
"""

from __future__ import annotations

import asyncio
from collections import deque
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

JOIN_BYTES = 64 * 1024
UNASKED_BYTES, UNREAD_BYTES = 64 * 1024, 1 << 20
"""So much of a body waits for its handler before nothing more is read."""
MAX_HEAD_BYTES, MAX_HEADERS = 64 * 1024, 128
"""Class parameters of a call, which are the largest headers of the API, take up to 32 KiB."""
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain\r\ncontent-length: 16\r\n"
    b"connection: close\r\n\r\ntoo many headers"
)
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
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
        if self.response_started or not self._begin(message):
            await super().send(message)

    def _begin(self, message: Any) -> bool:
        """Write the head of an answer that has nothing unusual."""
        if self.flow.write_paused or self.disconnected or not self.keep_alive:
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


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol with our cycles, on a transport with joined writes."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(JoinedWrites(transport, self.loop))  # type: ignore[arg-type]  # all that it uses

    _head_bytes = 0
    _too_large = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers) >= MAX_HEADERS:
            self._too_large = True
            raise ValueError("too many headers")  # the parser stops, and `send_400_response` is called
        super().on_header(name, value)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or has too much of it."""
        if not self._too_large:
            super().send_400_response(msg)
            return
        self.transport.write(_TOO_LARGE)
        self.transport.close()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._head_bytes = 0
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """Its head is there: the application begins."""
        if self.parser.should_upgrade() and self._should_upgrade():
            # uvicorn hands the connection over to its WebSocket protocol, which reads this again.
            self.scope = {"method": self.parser.get_method().decode("ascii"), "headers": self.headers}  # type: ignore[typeddict-item]
            return
        path, _, query = self.url.partition(b"?")
        if not path.startswith(b"/") or b"#" in self.url:
            parsed = httptools.parse_url(self.url)
            path, query = parsed.path or b"/", parsed.query or b""
        version = self.parser.get_http_version()
        text = path.decode("ascii")
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "method": self.parser.get_method().decode("ascii"),
            "root_path": "",
            "path": unquote(text) if "%" in text else text,
            "raw_path": path,
            "query_string": query,
            "headers": self.headers,
            "state": {},
        }
        self._begin(keep_alive=version != "1.0" and self.parser.should_keep_alive())

    def _begin(self, *, keep_alive: bool) -> None:
        before = cast("Cycle | None", self.cycle)  # None before the first request
        self.cycle = Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )
        self.cycle.parts, self.cycle.unread = deque(), 0
        self.cycle.limit = UNASKED_BYTES
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:  # pipelined: it waits for its turn
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        """A part of the body came."""
        cycle = self.cycle
        if cycle.response_complete:
            return
        assert isinstance(cycle, Cycle)
        cycle.parts.append(body)
        cycle.unread += len(body)
        if cycle.unread > cycle.limit:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """All of it is there. A first request that becomes a WebSocket has no cycle."""
        if self.cycle is not None and not self.cycle.response_complete:  # type: ignore[redundant-expr]
            self.cycle.more_body = False
            self.cycle.message_event.set()
