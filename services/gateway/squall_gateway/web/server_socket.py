"""A WebSocket with a web server in a container: the gateway is its client, by the `websockets` library without I/O."""

from __future__ import annotations

from collections import deque
from typing import Any

from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.exceptions import InvalidState, ProtocolError
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from squall.http_api.protocol import frames
from squall_gateway.web.upstream import MAX_MESSAGE_BYTES, Upstream

_OWN = frozenset(
    ("connection", "upgrade", "host", "sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions")
)
NO_CODE, NOT_UTF8, INTERNAL_ERROR = 1005, 1007, 1011


class ServerLink:
    """The container's side of a WebSocket, as frames."""

    def __init__(self, upstream: Upstream, scope: dict[str, Any]) -> None:
        self._upstream = upstream
        root, path = scope["root_path"], scope["raw_path"]
        target = (path[len(root) :] if root and path.startswith(root) else path) or "/"
        query = f"?{scope['query_string']}" if scope["query_string"] else ""
        uri = parse_uri(f"ws://localhost{target}{query}")
        offered = [value for name, value in scope["headers"] if name == "sec-websocket-protocol"]
        chosen_from = [Subprotocol(one.strip()) for value in offered for one in value.split(",") if one.strip()]
        self._protocol = ClientProtocol(uri, max_size=MAX_MESSAGE_BYTES, subprotocols=chosen_from or None)
        request = self._protocol.connect()
        own = [(name, value) for name, value in request.headers.raw_items() if name.lower() in _OWN - {"host"}]
        rest = [(name, value) for name, value in scope["headers"] if name not in _OWN]
        host = [("Host", value) for name, value in scope["headers"] if name == "host"][:1]
        prefix = [("x-forwarded-prefix", root)] if root else []
        request.headers = Headers([*(host or [("Host", "localhost")]), *own, *rest, *prefix])
        self._protocol.send_request(request)
        self._ready: deque[frames.Frame] = deque()
        self._parts: list[bytes] = []
        self._text = True
        self._flush()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._upstream.write(data)

    async def receive(self) -> frames.Frame | None:
        """ACCEPT, messages, CLOSE; None when the server has gone without a word."""
        while not self._ready:
            data = await self._upstream.receive_raw()
            if not data:
                return None
            self._protocol.receive_data(data)
            for event in self._protocol.events_received():
                self._on_event(event)
            self._flush()
            if self._protocol.handshake_exc is not None and not self._ready:
                self._end(INTERNAL_ERROR, "refused")
            elif self._protocol.parser_exc is not None:  # what cannot be passed on: too large, or no WebSocket at all
                told = self._protocol.close_sent
                self._end(told.code if told else INTERNAL_ERROR, told.reason if told else "")
        return self._ready.popleft()

    def _on_event(self, event: object) -> None:
        if isinstance(event, Response):
            if self._protocol.handshake_exc is None:
                chosen = event.headers.get("Sec-WebSocket-Protocol")
                self._ready.append(frames.Frame(frames.Web.ACCEPT, {"subprotocol": chosen, "headers": []}))
        elif isinstance(event, Frame):
            self._on_frame(event)

    def _on_frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._text, self._parts = frame.opcode is Opcode.TEXT, []
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            self._parts.append(bytes(frame.data))
            if frame.fin:
                self._on_message(b"".join(self._parts))
                self._parts = []
        elif frame.opcode is Opcode.CLOSE:
            told = self._protocol.close_rcvd
            if told is None or told.code == NO_CODE:
                self._end(1000, "")
            else:
                self._end(told.code, told.reason)

    def _on_message(self, data: bytes) -> None:
        if self._text:
            try:
                data.decode()
            except UnicodeDecodeError:
                self._end(NOT_UTF8, "the server's text is not UTF-8")
                return
        self._ready.append(frames.Frame(frames.Web.TEXT if self._text else frames.Web.BINARY, {}, data))

    def _end(self, code: int, reason: str) -> None:
        self._ready.append(frames.Frame(frames.Web.CLOSE, {"code": code, "reason": reason}))

    async def send(self, kind: int, meta: dict[str, Any], payload: bytes = b"") -> None:
        """A message of the client, or its end."""
        try:
            if kind == frames.Web.TEXT:
                self._protocol.send_text(payload)
            elif kind == frames.Web.BINARY:
                self._protocol.send_binary(payload)
            else:
                self._protocol.send_close(meta.get("code", 1000) if meta.get("code") not in (1005, 1006) else 1001)
        except (ProtocolError, InvalidState):
            return  # the server has closed it
        self._flush()
        await self._upstream.drain()
