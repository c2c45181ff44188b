"""HTTP with a web server in a container: the request is written anew, the answer is parsed strictly.

Owns the bytes of one exchange. The connection is an `Upstream` of type raw, and ends with the exchange.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import httptools

from squall.errors import RequestSizeError
from squall_gateway.waits import Receive
from squall_gateway.web.forward import HOP_BY_HOP, MAX_BODY_BYTES, ClientLeft, Cut, Exchange, Send, broke
from squall_gateway.web.upstream import Upstream

MAX_HEAD_BYTES = 256 * 1024


def request_head(scope: dict[str, Any], more: list[tuple[str, str]]) -> bytes:
    """The head of a request as the server gets it: of the scope that travels, without the path form's prefix."""
    root, path = scope["root_path"], scope["raw_path"]
    target = (path[len(root) :] if root and path.startswith(root) else path) or "/"
    query = f"?{scope['query_string']}" if scope["query_string"] else ""
    client = (scope.get("client") or ("", 0))[0]
    forwarded = [("x-forwarded-for", client), ("x-forwarded-proto", scope.get("scheme") or "http")]
    if root:
        forwarded.append(("x-forwarded-prefix", root))
    ours = {"expect", *(name for name, _ in forwarded)}  # who expects 100 Continue has been answered
    headers = [(name, value) for name, value in scope["headers"] if name not in ours]
    lines = [f"{name}: {value}\r\n" for name, value in (*headers, *forwarded, *more)]
    return f"{scope['method']} {target}{query} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1")


class ServerExchange(Exchange):
    """One request and its answer."""

    def __init__(self, upstream: Upstream, receive: Receive, send: Send, scope: dict[str, Any]) -> None:
        super().__init__(upstream, receive, send)
        self._scope = scope
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: deque[bytes] = deque()
        self._head_bytes = 0
        self._head_complete = False
        self._complete = False

    async def send_body(self) -> None:
        """Head and body of the request, then wait until the client leaves."""
        names = {name for name, _ in self._scope["headers"]}
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientLeft
        body, more = message.get("body", b""), message.get("more_body", False)
        chunked = "content-length" not in names and (more or bool(body))
        framing = [("transfer-encoding", "chunked")] if chunked else []
        self._upstream.write(request_head(self._scope, [*framing, ("connection", "close")]))
        sent = 0
        while True:
            sent += len(body)
            if sent > MAX_BODY_BYTES:
                raise RequestSizeError(f"a request may have {MAX_BODY_BYTES} bytes")
            if body:
                self._upstream.write(b"%x\r\n%s\r\n" % (len(body), body) if chunked else body)
            await self._upstream.drain()
            if not more:
                break
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientLeft
            body, more = message.get("body", b""), message.get("more_body", False)
        if chunked:
            self._upstream.write(b"0\r\n\r\n")
        while (await self._receive())["type"] == "http.request":
            pass
        raise ClientLeft

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
            headers = [(name, value) for name, value in self._headers if name not in HOP_BY_HOP]
            self.begun = True
            await self._send({"type": "http.response.start", "status": self._status, "headers": headers})
        while self._pieces:
            await self._send({"type": "http.response.body", "body": self._pieces.popleft(), "more_body": True})

    # --- httptools ---

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header of the answer."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head of an answer; one of `100 Continue` and its like is not the last."""
        self._status = self._parser.get_status_code()
        if self._status >= 200:
            self._head_complete = True
            self._complete = self._scope["method"] == "HEAD"

    def on_body(self, body: bytes) -> None:
        """A piece."""
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """All of it."""
        if self._head_complete:
            self._complete = True
        else:
            self._headers.clear()
