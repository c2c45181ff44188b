"""Lines: connections that containers offer at the agent's socket, each for one web request.

A container dials, says who it is, and waits; so a request never waits for a connection, and nothing of the agent's ever
connects to a place that a container controls.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections import deque

from squall_gpu_agent.web.halves import Half

MAX_IDLE = 64
"""Of one container."""


class Line(Half):
    """The agent's end of one. What happens at its end is told to whoever has it."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def open(self) -> bool:
        """Whether the container is there still."""
        return self._transport is not None and not self._transport.is_closing()

    def adopt(self, transport: asyncio.Transport) -> None:
        """Take over the connection on which the container has introduced itself."""
        self.connection_made(transport)
        transport.set_protocol(self)

    def eof_received(self) -> bool:
        """A runner closes both directions at once."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The request has ended in the container, or the container has."""
        super().connection_lost(exc)
        if not self.closed.done():
            self.closed.set_result(None)


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

    async def take(self, container: str) -> Line:
        """A line to it, at once if it has offered one. Raises `CancelledError` when it ends meanwhile."""
        idle = self._idle.get(container)
        while idle:
            line = idle.popleft()
            if line.open:
                return line
        waiting: asyncio.Future[Line] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(container, deque()).append(waiting)
        return await waiting
