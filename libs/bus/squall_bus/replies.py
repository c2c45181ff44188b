"""Who waits for which reply: one wildcard subscription for all requests and acks of a connection."""

from __future__ import annotations

import asyncio
from typing import Protocol

from squall_bus.errors import BusForbidden, BusUnavailable
from squall_bus.records import Message


class Waiter(Protocol):
    """Something that waits for replies to one subject."""

    def on_reply(self, headers: bytes, data: bytes) -> bool:
        """True when this was the last reply."""

    def on_lost(self) -> None:
        """The connection broke; no reply will come."""

    def on_denied(self, subject: bytes, error: BusForbidden) -> bool:
        """Our user may not publish to `subject`. True when it was this waiter's question: no reply will come."""


class Replies:
    """The table of waiters. Bounded by its users, each of which forgets what it no longer waits for."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._stem = prefix.encode() + b".%x"
        self._next = 0
        self._waiting: dict[bytes, Waiter] = {}

    def expect(self, waiter: Waiter) -> bytes:
        """A fresh reply subject for `waiter`."""
        self._next += 1
        subject = self._stem % self._next
        self._waiting[subject] = waiter
        return subject

    def forget(self, subject: bytes) -> None:
        self._waiting.pop(subject, None)

    def deliver(self, subject: bytes, _reply: bytes, headers: bytes, data: bytes) -> None:
        waiter = self._waiting.get(subject)
        if waiter is not None and waiter.on_reply(headers, data):
            self._waiting.pop(subject, None)

    def lose_all(self) -> None:
        """The connection broke: everybody who waits is told, once."""
        lost, self._waiting = self._waiting, {}
        for waiter in lost.values():
            waiter.on_lost()

    def deny(self, subject: bytes, error: BusForbidden) -> None:
        """Whoever asked there need not wait until their time is over."""
        for reply, waiter in list(self._waiting.items()):
            if waiter.on_denied(subject, error):
                self._waiting.pop(reply, None)

    def __len__(self) -> int:
        return len(self._waiting)


class OneReply:
    """Waits for a single reply with a deadline; a future without a task."""

    __slots__ = ("_future", "_subject", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, subject: bytes, timeout_s: float) -> None:
        self._subject = subject
        self._future: asyncio.Future[tuple[bytes, bytes]] = loop.create_future()
        self._timer = loop.call_later(timeout_s, self._fail, f"no reply within {timeout_s} s")

    def on_reply(self, headers: bytes, data: bytes) -> bool:
        if not self._future.done():
            self._future.set_result((headers, data))
        return True

    def on_lost(self) -> None:
        self._fail("the connection was lost before the reply came")

    def on_denied(self, subject: bytes, error: BusForbidden) -> bool:
        if subject != self._subject:
            return False
        if not self._future.done():
            self._future.set_exception(error)
        return True

    def _fail(self, why: str) -> None:
        if not self._future.done():
            self._future.set_exception(BusUnavailable(why))

    async def result(self) -> Message:
        try:
            headers, data = await self._future
        finally:
            self._timer.cancel()
        return Message("", "", data, headers)
