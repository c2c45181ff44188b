"""Two connections joined: bytes of one go out of the other, as fast as the slower one takes them. Looks at none."""

from __future__ import annotations

import asyncio
from typing import cast


class Half(asyncio.Protocol):
    """One of two connections."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._other: Half | None = None
        self._finished = False
        """Nothing more will be written to it."""
        self._said_all = False
        """Nothing more comes from it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast("asyncio.Transport", transport)

    def join(self, other: Half) -> None:
        """From here on what comes on one goes out of the other."""
        self._other, other._other = other, self

    def part(self) -> None:
        """End that: what comes on either goes nowhere any more."""
        other, self._other = self._other, None
        if other is not None:
            other._other = None
        self.hold(False)

    def write(self, data: bytes) -> None:
        """Send, if somebody is there."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def finish(self) -> None:
        """Nothing more will be written; reading goes on."""
        if self._finished or self._transport is None or self._transport.is_closing():
            return
        self._finished = True
        try:
            self._transport.write_eof()
        except OSError:  # the peer has gone at this moment
            self._transport.close()

    def close(self) -> None:
        """After what was written."""
        if self._transport is not None:
            self._transport.close()

    def hold(self, wait: bool) -> None:
        """Read no more, or again."""
        if self._transport is None or self._transport.is_closing():
            return
        if wait:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Bytes for the other one."""
        if self._other is not None:
            self._other.write(data)

    def eof_received(self) -> bool:
        """This one says nothing more; it may listen still, until the other one has said all too."""
        self._said_all = True
        if self._other is None:
            return True
        self._other.finish()
        return not self._other._said_all

    def pause_writing(self) -> None:
        """It is slower than the other."""
        if self._other is not None:
            self._other.hold(True)

    def resume_writing(self) -> None:
        """It has caught up."""
        if self._other is not None:
            self._other.hold(False)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed; so is the other, after what was written to it."""
        self._transport = None
        if self._other is not None:
            self._other.close()
