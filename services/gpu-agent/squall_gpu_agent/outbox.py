"""The outbox: hints (events, traces, usage) collected for a moment, so that many of them cost one write.

On the call path a write to a socket costs more than everything else that a hint needs; the bus's own buffer writes as
soon as the last burst is acknowledged, which at some hundred calls a second is one burst for each.
"""

from __future__ import annotations

import asyncio

from squall_bus import Bus
from squall_contracts.envelope import Message

DELAY_S = 0.03


class Outbox:
    """Messages that nobody waits for."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._messages: list[tuple[str, Message]] = []
        self.flushes = 0
        """How often everything was given to the bus. Until the next time a message that was put may be added to."""
        self._timer: asyncio.TimerHandle | None = None

    def put(self, subject: str, message: Message) -> None:
        """Publish soon, in the order of the calls."""
        self._messages.append((subject, message))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY_S, self.flush)

    def flush(self) -> None:
        """Give everything to the bus now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.flushes += 1
        messages, self._messages = self._messages, []
        for subject, message in messages:
            self._bus.publish_soon(subject, message.encode())
