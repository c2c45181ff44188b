"""The gateway's end of one web request: a connection to an agent, and through it to a container. Frames, both ways.

Owns back-pressure, the question for a slot, and whether the connection may be used again. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast
from urllib.parse import urlsplit

from squall.http_api.protocol import frames

CONNECT_S = 3.0
GRANT_S = 10.0
"""An agent answers at once; a container with a free slot may take five seconds to offer a connection."""
UNREAD_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 2 << 20
"""Of a WebSocket."""
_LAST = (frames.Web.END, frames.Web.FAIL)


class Unreachable(Exception):
    """The agent cannot be reached, or did not answer in order."""

    def __init__(self, reason: str, *, passed_on: bool = False) -> None:
        super().__init__(reason)
        self.passed_on = passed_on
        """It had the request: a container may have it."""


class Busy(Exception):
    """It has no free slot. Nothing was passed on."""


class Upstream(asyncio.Protocol):
    """One request."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._head: bytearray | None = bytearray()
        """Until the agent has answered."""
        self._decoder: frames.Decoder | None = frames.Decoder()
        self._ready: deque[Any] = deque()
        """Frames; or bytes, without a decoder."""
        self._unread = 0
        self._arrived = asyncio.Event()
        self._writable: asyncio.Event | None = None
        """While the container is slower than the client. Thousands of WebSockets never are."""
        self._refusal: Busy | Unreachable | None = None
        self.address = ""
        """Of the agent."""
        self.container = ""
        """Which one has the request, once the agent has said so."""
        self.granted_ago_s = 0.0
        """So much earlier than we heard of it."""
        self._kept = False
        """The agent takes another request here after this one."""
        self._answered = False
        """The last frame of the answer has come."""
        self.lost = False

    # ------------------------------------------------------------------ asking

    @classmethod
    async def ask(
        cls,
        address: str,
        ask: dict[str, Any],
        first: bytes,
        *,
        raw: bool = False,
        transport: asyncio.Transport | None = None,
    ) -> Upstream:
        """Ask an agent for a slot and pass the request on, as far as it is here. Raises `Busy`, `Unreachable`.

        `transport`: a connection to it that is open already."""
        upstream = cls()
        upstream.address = address
        if transport is not None:
            upstream.connection_made(transport)
            transport.set_protocol(upstream)
        else:
            try:
                async with asyncio.timeout(CONNECT_S):
                    await upstream._connect(address)
            except (OSError, TimeoutError, ValueError) as error:
                raise Unreachable(str(error) or "no answer") from error
        if raw:
            upstream._decoder = None
        try:
            upstream.write(frames.encode(frames.Web.ASK, ask) + first)
            async with asyncio.timeout(GRANT_S):
                await upstream._granted()
        except BaseException as error:
            upstream.close()
            if isinstance(error, TimeoutError):
                raise Unreachable("the agent does not answer", passed_on=True) from error
            raise
        return upstream

    async def _connect(self, address: str) -> None:
        loop, url = asyncio.get_running_loop(), urlsplit(address)
        if url.scheme == "unix":
            await loop.create_unix_connection(lambda: self, url.path)
        else:
            await loop.create_connection(lambda: self, url.hostname or "", url.port or 0)

    async def _granted(self) -> None:
        while self._head is not None:
            if self._refusal is not None:
                raise self._refusal
            if self.lost:
                raise Unreachable("the agent closed the connection", passed_on=True)
            self._arrived.clear()
            await self._arrived.wait()

    def _on_head(self) -> None:
        assert self._head is not None
        try:
            found = frames.first(self._head)
        except frames.BadFrame:
            self.close()
            return
        if found is None:
            return
        frame, size = found
        if frame.kind != frames.Web.GRANTED:
            # An agent that does not know the key is not the one that it was asked for: its address is out of date.
            refused = Unreachable if frame.meta.get("stranger") is True else Busy
            self._refusal = refused(str(frame.meta.get("reason", "")))
            self._arrived.set()
            self.close()
            return
        self.container = str(frame.meta.get("container", ""))
        self.granted_ago_s = int(frame.meta.get("ago_us", 0)) / 1e6
        self._kept = frame.meta.get("kept") is True
        rest, self._head = bytes(self._head[size:]), None
        self._arrived.set()
        if rest:
            self._take(rest)

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """From the agent, then from the container."""
        if self._head is not None:
            self._head += data
            self._on_head()
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        if self._decoder is None:
            self._ready.append(data)
        else:
            try:
                came = self._decoder.feed(data)
            except frames.BadFrame:
                self.abort()
                return
            if came:
                self._answered = came[-1].kind in _LAST
                self._ready.extend(came)
        self._unread += len(data)
        if self._unread > UNREAD_BYTES and self._transport is not None:
            self._transport.pause_reading()
        self._arrived.set()

    def eof_received(self) -> bool:
        """The container says nothing more, and listens no more."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The request is over, or its container is."""
        self._transport = None
        self.lost = True
        self._arrived.set()
        self.resume_writing()

    def pause_writing(self) -> None:
        """The container is slower than the client."""
        self._writable = self._writable or asyncio.Event()

    def resume_writing(self) -> None:
        """It has caught up."""
        writable, self._writable = self._writable, None
        if writable is not None:
            writable.set()

    # ------------------------------------------------------------------ the request's side

    async def answers(self) -> None:
        """Returns as soon as something has come, or nothing will. Takes nothing away."""
        await self._something()

    async def receive(self) -> frames.Frame | None:
        """The next frame; None when the connection has ended."""
        if not await self._something():
            return None
        frame: frames.Frame = self._ready.popleft()
        self._consumed(len(frame.payload) if self._ready else self._unread)
        return frame

    def receive_now(self) -> frames.Frame | None:
        """The next frame if it is here already."""
        return self._ready.popleft() if self._ready else None

    async def receive_raw(self) -> bytes:
        """The next bytes; none when the connection has ended."""
        if not await self._something():
            return b""
        data: bytes = self._ready.popleft()
        self._consumed(len(data))
        return data

    async def _something(self) -> bool:
        while not self._ready:
            if self.lost:
                return False
            self._arrived.clear()
            self._consumed(self._unread)
            await self._arrived.wait()
        return True

    def _consumed(self, size: int) -> None:
        self._unread = max(0, self._unread - size)
        if self._unread <= UNREAD_BYTES and self._transport is not None:
            self._transport.resume_reading()

    def send(self, kind: int, meta: dict[str, Any], payload: bytes = b"") -> None:
        """Send a frame."""
        self.write(frames.encode(kind, meta, payload))

    def write(self, data: bytes) -> None:
        """Send bytes."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def drain(self) -> None:
        """Until there is room again."""
        if self._writable is not None:
            await self._writable.wait()

    def detach(self) -> asyncio.Transport | None:
        """The connection, if another request may use it; from then on this object has none."""
        whole = self._kept and self._answered and self._decoder is not None and not self._decoder.pending_bytes
        if not whole or self._transport is None or self._transport.is_closing():
            return None
        transport, self._transport, self.lost = self._transport, None, True
        transport.resume_reading()
        return transport

    def close(self) -> None:
        """Nothing more is wanted."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """At once."""
        if self._transport is not None:
            self._transport.abort()
