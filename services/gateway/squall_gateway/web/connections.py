"""Connections to agents, kept for the next request: most requests are whole when they are sent, and end in order.

Owns which are idle and for how long. A connection that says anything while it is idle is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from squall_gateway.web.upstream import Upstream

MAX_IDLE = 256
"""To one agent."""
IDLE_S = 60.0
"""Well below what an agent allows (600 s): who reuses a connection must be the one that closes it."""


class Connections:
    """All of this gateway, by the address of their agent."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._idle: dict[str, dict[Idle, None]] = {}

    async def ask(self, address: str, ask: dict[str, Any], first: bytes, *, raw: bool, whole: bool) -> Upstream:
        """Ask an agent for a slot and pass the request on, as far as it is here. `whole`: that is all of it. Raises
        `Busy`, `Unreachable`."""
        if not whole:
            return await Upstream.ask(address, ask, first, raw=raw)
        transport = self._take(address)
        return await Upstream.ask(address, {**ask, "size": len(first)}, first, transport=transport)

    def _take(self, address: str) -> asyncio.Transport | None:
        idle = self._idle.get(address)
        while idle:
            transport = idle.popitem()[0].leave()
            if transport is not None:
                return transport
        return None

    def release(self, upstream: Upstream) -> None:
        """Its request is over."""
        transport = upstream.detach()
        if transport is None:
            upstream.close()
            return
        idle = self._idle.setdefault(upstream.address, {})
        if len(idle) >= MAX_IDLE:
            transport.close()
            return
        connection = Idle(transport, self._now(), idle)
        idle[connection] = None
        transport.set_protocol(connection)

    def close(self) -> None:
        """The gateway ends."""
        for idle in list(self._idle.values()):
            for connection in list(idle):
                connection.close()

    def tick(self) -> None:
        """Close what nobody has used for long."""
        before = self._now() - IDLE_S
        for address, idle in list(self._idle.items()):
            for connection in [each for each in idle if each.since < before]:
                connection.close()
            if not idle:
                del self._idle[address]


class Idle(asyncio.Protocol):
    """One without a request."""

    __slots__ = ("_others", "_transport", "since")

    def __init__(self, transport: asyncio.Transport, since: float, others: dict[Idle, None]) -> None:
        self._transport, self.since, self._others = transport, since, others

    def leave(self) -> asyncio.Transport | None:
        """It gets a request; None if it is closing."""
        return None if self._transport.is_closing() else self._transport

    def close(self) -> None:
        """It is too old."""
        self._others.pop(self, None)
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Nobody has asked for anything."""
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The agent has ended."""
        self._others.pop(self, None)
