"""HTTP/1.1 on one connection: uvicorn's protocol with the parts replaced that each request pays for.

Connections, keep-alive, pipelining and shutdown are uvicorn's. Ours are what becomes of a request's head, who is
refused, and how long a connection may say nothing; bodies and answers are in `http_cycle`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from squall_gateway.http_cycle import UNASKED_BYTES, Cycle, JoinedWrites

HEAD_S = 30.0
"""A connection has so long to bring the head of a request: who sends a byte now and then keeps none for ever."""
_VERSIONS = ("1.0", "1.1")
MAX_HEAD_BYTES, MAX_HEADERS = 64 * 1024, 128
"""Class parameters of a call, which are the largest headers of the API, take up to 32 KiB."""
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain\r\ncontent-length: 16\r\n"
    b"connection: close\r\n\r\ntoo many headers"
)
_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain\r\ncontent-length: 37\r\n"
    b"connection: close\r\n\r\nthe head of the request took too long"
)
_BAD_SOCKET = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 39\r\n"
    b"connection: close\r\n\r\na WebSocket cannot be opened with these"
)
_LOOKED_AT = frozenset((b"expect", b"host", b"transfer-encoding"))
_BODY = frozenset((b"content-length", b"transfer-encoding"))


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol with our cycles, on a transport with joined writes."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(JoinedWrites(transport, self.loop))  # type: ignore[arg-type]  # all that it uses

        self._head_timer = self.loop.call_later(HEAD_S, self._too_slow)

    def data_received(self, data: bytes) -> None:
        """From the client."""
        self._unset_keepalive_if_required()
        unread = memoryview(data)
        try:
            while unread:
                unread = self._feed(unread)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self._is_answering() or self._is_socket or self.timeout_keep_alive_task is not None:
            self._forget_timer()
        else:  # in a head; or in bytes that begin none, and in the body of a request that has been answered already
            self._head_timer = self._head_timer or self.loop.call_later(HEAD_S, self._too_slow)

    def _feed(self, data: memoryview) -> memoryview:
        """What is to be read again by another parser. The one that we have takes everything behind the head of a
        request with `Upgrade` for another protocol, its body too: the next request could be hidden in it."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
                return data[:0]
            (read,) = upgrade.args
            self._without_upgrade()
            return data[read:]
        return data[:0]

    def _without_upgrade(self) -> None:
        """Begin the request again, as one that wants nothing but HTTP, which any server may take it for."""
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += (name, b": ", value, b"\r\n")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self.parser.feed_data(b"".join((*head, b"\r\n")))

    def _should_upgrade(self) -> bool:
        """Whether a WebSocket is wanted, by a request that may open one."""
        opens = self.parser.get_method() == b"GET" and self.parser.get_http_version() == "1.1"
        return opens and not any(name in _BODY for name, _ in self.headers) and super()._should_upgrade()

    def handle_websocket_upgrade(self) -> None:
        """The connection is a WebSocket from now on."""
        self._is_socket = True
        super().handle_websocket_upgrade()
        socket = self.transport.get_protocol()
        assert isinstance(socket, WebSocketsSansIOProtocol)
        if (
            not socket.handshake_initiated
        ):  # its library has refused the head, for a line of 8 KiB: uvicorn says nothing
            socket.close_sent = True
            self.transport.write(_BAD_SOCKET)
            self.transport.close()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _is_answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _forget_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self._is_answering():
            self._head_timer = self.loop.call_later(HEAD_S, self._too_slow)  # the next one's, while this is answered
            return
        if self._in_head:
            self.transport.write(_TOO_SLOW)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or we have closed the connection."""
        self._forget_timer()
        super().connection_lost(exc)
        cycle = self._running  # uvicorn tells the newest, which may wait behind it
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.on_left is not None:
                cycle.on_left()

    _head_bytes = 0
    _in_head = _too_large = _is_socket = False
    _host: bytes | None = None
    _head_timer: asyncio.TimerHandle | None = None
    _running: Cycle | None = None
    """The newest request whose turn has come. `cycle` is the newest of all."""

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; or one below the body, a trailer: that is nobody's, and a header must not come after the fact."""
        self._count(len(name) + len(value))
        if not self._in_head:
            return
        if len(self.headers) >= MAX_HEADERS:
            self._count(MAX_HEAD_BYTES)
        name = name.lower()
        if name in _LOOKED_AT:
            self._look_at(name, value)
        self.headers.append((name, value))

    def _look_at(self, name: bytes, value: bytes) -> None:
        if name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"
        elif name == b"host":
            if self._host is not None:
                raise ValueError("two hosts: a proxy in front may have believed the other one")
            self._host = value
        elif value.strip().lower() != b"chunked":
            raise ValueError("a transfer coding that nobody here can undo")

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._too_large = True
            raise ValueError("too many headers")  # the parser stops, and `send_400_response` is called

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or has too much of it."""
        cycle = self._running
        other = self._in_head or self.cycle is not cycle
        if cycle is not None and not cycle.response_complete and (cycle.response_started or other):
            self.transport.close()  # in the middle of an answer, or before it, there is no room for another
        elif self._too_large:
            self.transport.write(_TOO_LARGE)
            self.transport.close()
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._head_bytes = 0
        self._in_head, self._host = True, None
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """Its head is there: the application begins."""
        version, method = self.parser.get_http_version(), self.parser.get_method()
        if version not in _VERSIONS or (self._host is None and version == "1.1") or method == b"CONNECT":
            raise ValueError("a request that is not of HTTP/1.0, not one of HTTP/1.1 with a Host, or to be a tunnel")
        if self.parser.should_upgrade():
            self._on_upgrade(method)
            return
        path, _, query = self.url.partition(b"?")
        if not path.startswith(b"/") or b"#" in self.url:
            path, query = self._parsed()
        text = path.decode("ascii")
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "method": method.decode("ascii"),
            "root_path": "",
            "path": unquote(text) if "%" in text else text,
            "raw_path": path,
            "query_string": query,
            "headers": self.headers,
            "state": {},
        }
        self._in_head = False
        self._begin(keep_alive=version != "1.0" and self.parser.should_keep_alive())

    def _on_upgrade(self, method: bytes) -> None:
        """The parser stops behind this head; `_feed` has what follows."""
        if self._is_answering() and self._should_upgrade():
            raise ValueError("a WebSocket cannot be opened in the middle of an answer")
        # uvicorn hands the connection over to its WebSocket protocol, which reads this again.
        self.scope = {"method": method.decode("ascii"), "headers": self.headers}  # type: ignore[typeddict-item]

    def _parsed(self) -> tuple[bytes, bytes]:
        """Path and query of a target that is a whole address, or has a fragment."""
        parsed = httptools.parse_url(self.url)
        if parsed.host is not None and self._host is not None:  # type: ignore[redundant-expr]  # or none
            authority = self.url.split(b"://", 1)[-1]
            for end in (b"/", b"?", b"#"):
                authority = authority.partition(end)[0]
            if authority.lower() != self._host.strip().lower():
                raise ValueError("two hosts: a proxy in front may have believed the one of the address")
        return parsed.path or b"/", parsed.query or b""

    def _begin(self, *, keep_alive: bool) -> None:
        self._unset_keepalive_if_required()
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
        """All of it is there."""
        if self.cycle is None or self.parser.should_upgrade():  # type: ignore[redundant-expr]  # none before the first
            return
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()
        else:  # answered early: from now on the connection is idle
            handler = self.timeout_keep_alive_handler
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, handler)
