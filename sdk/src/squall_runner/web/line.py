"""One line: a connection to the agent that carries one web request at a time. Frames, or after OPEN of type "raw" plain
bytes.

Owns its two directions of back-pressure; knows nothing of ASGI. After a whole request the connection goes on as a new
`Line`, so that whoever still listens for the old request hears nothing of the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Callable, Optional

from squall_runner.frames import BadFrame, Decoder, Frame, Web, encode, first

JOIN_BYTES = 64 * 1024
UNREAD_BYTES = 1 << 20
"""So much of a body waits for the app before nothing more is read."""


class Line(asyncio.Protocol):
    """Offered when it is made; the first frame begins its request."""

    def __init__(self, hello: bytes, on_open: Callable[[Line, Frame], None]) -> None:
        self._hello = hello
        self._on_open = on_open
        self.on_lost: Callable[[Line], None] = lambda line: None
        self._transport: Any = None
        self._early: Optional[bytearray] = bytearray()
        self._decoder: Optional[Decoder] = None
        self._frames: deque[Frame] = deque()
        self._raw: deque[bytes] = deque()
        self._unread = 0
        self._unsent: list[bytes] = []
        """Written in this turn of the loop. It leaves together: each piece would wake up the agent."""
        self._unsent_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._heard_all = False
        """The request's END is here, whether the app has read it or not."""
        self.gone = False
        """The gateway listens no more: nobody gets what is sent."""

    # --- asyncio.Protocol ---

    def connection_made(self, transport: Any) -> None:
        """Introduce this container."""
        self._transport = transport
        transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        """Frames, or bytes."""
        if self._early is not None:
            self._early += data
            self._begin()
        else:
            self._take(data)

    def eof_received(self) -> bool:
        """Whoever asked is gone; the app may go on. Without a request, it is the agent that wants no more."""
        self._leave()
        return self._early is None

    def connection_lost(self, exc: Optional[Exception]) -> None:
        """Closed, by us or by the agent."""
        self._transport = None
        self._leave()
        self.on_lost(self)

    def pause_writing(self) -> None:
        """The reader is slower than the app."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._writable.set()

    def _begin(self) -> None:
        assert self._early is not None
        found = first(self._early)
        if found is None:
            return
        frame, size = found
        rest, self._early = bytes(self._early[size:]), None
        if frame.meta["type"] != "raw":
            self._decoder = Decoder()
        if rest:
            self._take(rest)
        self._on_open(self, frame)

    def _take(self, data: bytes) -> None:
        if self._decoder is None:
            self._raw.append(data)
        else:
            try:
                came = self._decoder.feed(data)
            except BadFrame:
                self.close()
                return
            self._frames.extend(came)
            self._heard_all = bool(came) and came[-1].kind == Web.END
        self._unread += len(data)
        if self._unread > UNREAD_BYTES and self._transport is not None:
            self._transport.pause_reading()
        self._arrived.set()

    def _leave(self) -> None:
        self.gone = True
        self._arrived.set()
        self._writable.set()

    # --- the request's side ---

    async def receive(self) -> Optional[Frame]:
        """The next frame; None when the other end is gone."""
        if not await self._something(self._frames):
            return None
        frame = self._frames.popleft()
        self._consumed(len(frame.payload) if self._frames else self._unread)
        return frame

    async def receive_raw(self) -> bytes:
        """The next bytes; none when the other end is gone."""
        if not await self._something(self._raw):
            return b""
        data = self._raw.popleft()
        self._consumed(len(data))
        return data

    async def _something(self, queue: Any) -> bool:
        while not queue:
            if self.gone:
                return False
            self._arrived.clear()
            if self._unread:  # a frame that is not complete
                self._consumed(self._unread)
            await self._arrived.wait()
        return True

    def _consumed(self, size: int) -> None:
        self._unread = max(0, self._unread - size)
        if self._unread <= UNREAD_BYTES and self._transport is not None:
            self._transport.resume_reading()

    def send_now(self, kind: int, meta: dict[str, Any], payload: bytes = b"") -> None:
        """Send a frame; what nobody hears is dropped."""
        self.write(encode(kind, meta, payload))

    def write(self, data: bytes) -> None:
        """Send bytes, at the end of this turn; or now if they are many, for then the reader's pace must be felt."""
        if self._transport is None or self.gone:
            return
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._unsent_bytes > JOIN_BYTES:
            self._flush()

    def _flush(self) -> None:
        unsent, self._unsent, self._unsent_bytes = self._unsent, [], 0
        if unsent and self._transport is not None and not self.gone:
            self._transport.write(b"".join(unsent))

    async def drain(self) -> None:
        """Until there is room again."""
        await self._writable.wait()

    async def again(self) -> Optional[Line]:
        """The code of a whole request has ended: what takes the next one. None when whoever asked is gone; the line is
        to be closed then."""
        while not self._heard_all and not self.gone:
            self._arrived.clear()
            await self._arrived.wait()
        if self.gone or self._transport is None or self._decoder is None or self._decoder.pending_bytes:
            return None
        following = Line(b"", self._on_open)
        following.on_lost = self.on_lost
        self.send_now(Web.DONE, {})
        self._flush()
        transport, self._transport = self._transport, None
        self._leave()
        following._transport = transport
        transport.set_protocol(following)
        transport.resume_reading()
        return following

    def close(self) -> None:
        """The request is over."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def abort(self) -> None:
        """It is over without an end: whoever reads must see that it was cut."""
        if self._transport is not None:
            self._flush()
            self._transport.abort()
