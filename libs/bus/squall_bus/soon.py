"""Publishing without waiting: events, logs, spans, usage. Bounded; drops the oldest and counts it.

One burst per stream is in flight, and only its last record asks for an ack: the server stores records of one connection
in order, so that ack covers all of them. A burst without an ack is written again (at least once).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from itertools import count

from squall_bus.consume import event
from squall_bus.errors import BusForbidden
from squall_bus.lane import Pending
from squall_bus.link import Link
from squall_bus.records import Record
from squall_bus.routes import Route, Routes
from squall_bus.wire import publish_command, status_of
from squall_bus.writes import batch_commands

MAX_BURST = 500
MAX_BUFFERED = 20_000
"""Records per stream."""
ATTEMPT_S = 5.0
PAUSE_S = 0.5


def _ignore(_: object) -> None:
    """Nobody waits for the outcome."""


class _Burst:
    """The buffer of one stream, and its burst in flight."""

    def __init__(self, link: Link, route: Route) -> None:
        self._link = link
        self._route = route
        self.buffer: deque[Pending] = deque()
        self.in_flight: list[Pending] = []
        self._reply = b""
        self._atomic = False
        self._timer: asyncio.TimerHandle | None = None

    def add(self, pending: Pending) -> None:
        if len(self.buffer) >= MAX_BUFFERED:
            self.buffer.popleft()
            self._link.stats.soon_dropped += 1
        self.buffer.append(pending)
        if not self.in_flight:
            self._write_in_time()

    def _write_in_time(self) -> None:
        """A full burst now, a smaller one when it has waited, also after the last burst was acknowledged: written at
        once, each hint of a lone call was a burst of its own, which woke the server and us twice."""
        if len(self.buffer) >= MAX_BURST:
            self.write()
        elif self._timer is None and self.buffer:
            self._timer = self._link.loop.call_later(self._route.soon_s, self.write)

    def write(self) -> None:
        """Write the next burst, if nothing is in flight."""
        self._stop_timer()
        if not self._link.connected or self.in_flight or not self.buffer:
            return
        self.in_flight = [self.buffer.popleft() for _ in range(min(MAX_BURST, len(self.buffer)))]
        self._send(atomic=self._route.atomic and len(self.in_flight) >= self._link.settings.batch_from)

    def _send(self, *, atomic: bool) -> None:
        self._atomic = atomic
        self._reply = self._link.replies.expect(self)
        self._link.write(_commands(self.in_flight, self._reply, atomic=atomic))
        self._timer = self._link.loop.call_later(ATTEMPT_S, self._no_answer)

    def on_reply(self, headers: bytes, data: bytes) -> bool:
        self._stop_timer()
        if status_of(headers):  # nobody stores this subject now: no leader, or no stream
            self.on_lost()
            self._timer = self._link.loop.call_later(PAUSE_S, self.write)
        elif b'"error"' in data and self._atomic:
            self._send(atomic=False)  # one bad record refused them all: now each for itself
        else:
            refused = int(b'"error"' in data)  # only the last one's own answer is known
            self._link.stats.soon_dropped += refused
            self._link.stats.soon_published += len(self.in_flight) - refused
            if refused:
                event(logging.WARNING, "bus_soon_refused", stream=self._route.stream, answer=data[:200].decode())
            self.in_flight = []
            self._write_in_time()
        return True

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_lost(self) -> None:
        room = MAX_BUFFERED - len(self.buffer)
        kept = self.in_flight[-room:] if room > 0 else []
        self._link.stats.soon_dropped += len(self.in_flight) - len(kept)
        self.buffer.extendleft(reversed(kept))
        self.in_flight = []

    def on_denied(self, subject: bytes, _: BusForbidden) -> bool:
        allowed = [pending for pending in self.in_flight if pending.subject != subject]
        dropped = len(self.in_flight) - len(allowed)
        if not dropped:
            return False
        self._link.stats.soon_dropped += dropped
        self.in_flight = allowed
        self._stop_timer()
        self.on_lost()
        self._timer = self._link.loop.call_later(self._route.soon_s, self.write)
        return True

    def _no_answer(self) -> None:
        self._timer = None
        self._link.replies.forget(self._reply)
        self.on_lost()
        self.write()


class SoonBuffer:
    """The buffers of all streams."""

    def __init__(self, link: Link, routes: Routes) -> None:
        self._link = link
        self._routes = routes
        self._bursts: dict[str, _Burst] = {}
        self._stop_listening = link.on_reconnect(self._write_all)

    def add(self, record: Record) -> None:
        route = self._routes.of(record.subject)
        burst = self._bursts.get(route.stream)
        if burst is None:
            burst = self._bursts[route.stream] = _Burst(self._link, route)
        burst.add(Pending(record, float("inf"), _ignore))

    def _write_all(self) -> None:
        for burst in self._bursts.values():
            burst.write()

    @property
    def waiting(self) -> int:
        return sum(len(burst.buffer) + len(burst.in_flight) for burst in self._bursts.values())

    async def flush(self, timeout_s: float) -> bool:
        """Write now, and wait until everything is acknowledged."""
        until = self._link.loop.time() + timeout_s
        while self.waiting and self._link.loop.time() < until:
            self._write_all()
            await asyncio.sleep(0.002)
        return not self.waiting

    def close(self) -> None:
        self._stop_listening()


_batch_prefix = secrets.token_hex(6)
_batch_numbers = count()


def _plain(pending: Pending, reply: bytes) -> bytes:
    return publish_command(pending.subject, reply, pending.head + b"\r\n" if pending.head else b"", pending.data)


def _commands(burst: list[Pending], reply: bytes, *, atomic: bool) -> bytes:
    if atomic:
        return batch_commands(burst, f"{_batch_prefix}s{next(_batch_numbers):x}", reply)
    return b"".join([*(_plain(pending, b"") for pending in burst[:-1]), _plain(burst[-1], reply)])
