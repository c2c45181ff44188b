"""HTTP with a web server in a container: the request is written anew, the answer is parsed strictly.

Owns the bytes of one exchange. The connection is an `Upstream` of type raw, and ends with the exchange.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import httptools

from squall_gateway.waits import Receive
from squall_gateway.web.forward import HOP_BY_HOP, Cut, Exchange, Send, broke
from squall_gateway.web.upstream import Upstream

MAX_HEAD_BYTES = 256 * 1024


def request_head(scope: dict[str, Any], more: list[tuple[str, str]]) -> bytes:
    """The head of a request as the server gets it: of the scope that travels, without the path form's prefix."""
    root, path = scope["root_path"], scope["raw_path"]
    target = (path[len(root) :] if root and path.startswith(root) else path) or "/"
    query = f"?{scope['query_string']}" if scope["query_string"] else ""
    # Who expects 100 Continue has been answered.
    headers = [(name, value) for name, value in scope["headers"] if name != "expect"]
    prefix = [("x-forwarded-prefix", root)] if root else []
    lines = [f"{name}: {value}\r\n" for name, value in (*headers, *prefix, *more)]
    return f"{scope['method']} {target}{query} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1")


def first_bytes(scope: dict[str, Any], body: bytes | None) -> bytes:
    """What a server gets at once: the head, and the body if it is here."""
    chunked = [] if body is not None or is_counted(scope) else [("transfer-encoding", "chunked")]
    return request_head(scope, [*chunked, ("connection", "close")]) + (body or b"")


def is_counted(scope: dict[str, Any]) -> bool:
    """Whether the request says how long its body is."""
    return any(name == "content-length" for name, _ in scope["headers"])


class ServerExchange(Exchange):
    """One request and its answer."""

    def __init__(
        self, upstream: Upstream, receive: Receive, send: Send, *, body_sent: bool, scope: dict[str, Any]
    ) -> None:
        super().__init__(upstream, receive, send, body_sent=body_sent)
        self._method, self._chunked = scope["method"], not is_counted(scope)
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: deque[bytes] = deque()
        self._head_bytes = 0
        self._head_complete = False
        self._complete = self._beyond = False

    def pass_on(self, piece: bytes) -> None:
        """A piece of the body, or its end."""
        self._upstream.write(b"%x\r\n%s\r\n" % (len(piece), piece) if self._chunked else piece)

    async def read_answer(self) -> None:
        """The answer, to its end."""
        while not self._complete:
            data = await self._upstream.receive_raw()
            if not data:
                self._ended_by_close()
                break
            if not self._head_complete:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    raise broke("a head of too many bytes")
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError as error:
                if self.begun:
                    raise Cut("the web server broke off its answer") from error
                raise broke("an answer that is not HTTP") from error
            await self._pass_on()
        await self._pass_on()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _ended_by_close(self) -> None:
        """An answer without a length ends with its connection; all others are cut."""
        named = {name for name, _ in self._headers}
        if not self._head_complete:
            raise broke("")
        if named & {b"content-length", b"transfer-encoding"}:
            raise Cut("the web server ended in the middle of its answer")

    async def _pass_on(self) -> None:
        if self._head_complete and not self.begun:
            if self._status >= 600:
                raise broke(f"an answer with the status {self._status}")
            headers = [(name, value) for name, value in self._headers if name not in HOP_BY_HOP]
            self.begun = True
            await self._send({"type": "http.response.start", "status": self._status, "headers": headers})
        while self._pieces:
            await self._send({"type": "http.response.body", "body": self._pieces.popleft(), "more_body": True})

    # --- httptools ---

    def on_message_begin(self) -> None:
        """An answer. One behind the first is nobody's: its head and body must not be added to those of the first."""
        self._beyond = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header of the answer; one below its body, a trailer, goes no further."""
        if not self._head_complete:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head of an answer; one of `100 Continue` and its like is not the last."""
        if self._beyond:
            return
        self._status = self._parser.get_status_code()
        if self._status >= 200:
            self._head_complete = True
            self._complete = self._method == "HEAD"

    def on_body(self, body: bytes) -> None:
        """A piece."""
        if not self._beyond:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        """All of it."""
        if self._head_complete:
            self._complete = True
        else:
            self._headers.clear()
