"""Lines: connections that containers offer at the agent's socket, each for one web request at a time.

A container dials, says who it is, and waits; so a request never waits for a connection, and nothing of the agent's ever
connects to a place that a container controls.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections import deque
from collections.abc import Callable

from squall_gpu_agent.web.halves import Half

MAX_IDLE = 64
"""Of one container."""


class Line(Half):
    """The agent's end of one. What happens at its end is told to whoever has it."""

    def __init__(self) -> None:
        super().__init__()
        self.on_closed: Callable[[], None] | None = None
        """Called once, when the request has ended in the container, or the container has."""
        self.on_data: Callable[[bytes], None] | None = None
        """Takes what the container says. Without, it goes to the other half as it is."""

    @property
    def open(self) -> bool:
        """Whether the container is there still, and listens."""
        return self._transport is not None and not self._finished and not self._transport.is_closing()

    def data_received(self, data: bytes) -> None:
        """From the container."""
        if self.on_data is not None:
            self.on_data(data)
        else:
            super().data_received(data)

    def adopt(self, transport: asyncio.Transport) -> None:
        """Take over the connection on which the container has introduced itself."""
        self.connection_made(transport)
        transport.set_protocol(self)

    def eof_received(self) -> bool:
        """A runner closes both directions at once."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The request has ended in the container, or the container has."""
        told, self.on_closed = self.on_closed, None
        if told is not None:
            told()  # first: it may have a last word for the gateway
        super().connection_lost(exc)


class Lines:
    """Idle lines of the containers here."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}
        self._idle: dict[str, deque[Line]] = {}
        self._waiting: dict[str, deque[asyncio.Future[Line]]] = {}

    def expect(self, container: str) -> str:
        """The key with which a container that starts may offer lines."""
        key = self._keys[container] = secrets.token_urlsafe(18)
        return key

    def forget(self, container: str) -> None:
        """It has ended."""
        self._keys.pop(container, None)
        for line in self._idle.pop(container, ()):
            line.close()
        for waiting in self._waiting.pop(container, ()):
            waiting.cancel()

    def offer(self, hello: bytes, line: Line) -> bool:
        """A line whose first words were `hello`: `<container> <key>`. False when nobody expects it."""
        container, _, key = hello.decode("ascii", "replace").strip().partition(" ")
        known = self._keys.get(container)
        if known is None or not hmac.compare_digest(known.encode(), key.encode()):
            return False
        return self._take_in(container, line)

    def back(self, container: str, line: Line) -> None:
        """A line whose request has ended, for the next one."""
        if not line.open or container not in self._keys or not self._take_in(container, line):
            line.close()

    def _take_in(self, container: str, line: Line) -> bool:
        waiting = self._waiting.get(container)
        while waiting:
            first = waiting.popleft()
            if not first.done():
                first.set_result(line)
                return True
        idle = self._idle.setdefault(container, deque())
        if len(idle) >= MAX_IDLE:
            return False
        idle.append(line)
        return True

    def take_now(self, container: str) -> Line | None:
        """A line to it, if it has offered one."""
        idle = self._idle.get(container)
        while idle:
            line = idle.pop()  # the newest: what a burst needed goes cold
            if line.open:
                return line
        return None

    async def take(self, container: str) -> Line:
        """The next line that it offers. Raises `CancelledError` when it ends meanwhile."""
        waiting: asyncio.Future[Line] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(container, deque()).append(waiting)
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():  # given in the turn in which the taker gave up
                self.back(container, waiting.result())
            raise
