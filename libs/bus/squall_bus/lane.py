"""The way into one stream: what waits, what is being written, and the rule of group commit.

Group commit: with fsync for every write a stream takes 1,900-3,400 single records/s; what arrived while the last write
was in flight goes out as ONE atomic batch (ADR-50), which makes 5,100-9,500/s. A batch is all or nothing, so a refused
one is repeated in parts, and a small one singly: each record gets its own answer. While records come fast enough to
fill a batch, a lane waits a moment for it (`Gathering`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count

from squall_bus.errors import BusError, BusUnavailable, PublishUnknown
from squall_bus.gathering import Gathering
from squall_bus.link import Link
from squall_bus.records import Published, Record
from squall_bus.routes import Route
from squall_bus.wire import HEADER_START, header_lines, subject_bytes, ttl_text
from squall_bus.writes import BatchWrite, OwnerCheck, SingleWrite, Write

MAX_BATCH = 1000
"""The server's own limit."""
MAX_BATCH_BYTES = 4 * 1024 * 1024
PARTS = 8
"""Of a refused batch. One bad record among 1,000 makes 16 more batches and 16 single writes instead of 1,000."""
MAX_SINGLES = 1024
"""Single records in flight on a stream without atomic batches; the server queues 100,000 and then drops."""
EXPECT = b"Nats-Expected-Last-Subject-Sequence"
RETRY_S = (0.02, 0.05, 0.1, 0.25, 0.5)

_batch_prefix = secrets.token_hex(6)
_batch_numbers = count()


class Pending:
    """One record on its way, until it is settled."""

    __slots__ = (
        *("attempts", "data", "deadline", "first_written", "head"),
        *("maybe_stored", "msg_id", "number", "settle", "subject"),
    )

    def __init__(self, record: Record, deadline: float, settle: Callable[[Published | BusError], None]) -> None:
        self.subject = subject_bytes(record.subject)
        self.data = record.data
        self.head = _head(record)
        self.msg_id = record.msg_id.encode() if record.msg_id is not None else None
        self.deadline = deadline
        self.settle: Callable[[Published | BusError], None] | None = settle
        self.number = 0
        self.attempts = 0
        self.first_written = 0.0
        self.maybe_stored = False
        """An attempt ended without an answer."""

    def finish(self, outcome: Published | BusError) -> None:
        """Settle once; later answers for the same record are repeats."""
        settle, self.settle = self.settle, None
        if settle is not None:
            settle(outcome)

    @property
    def size(self) -> int:
        return len(self.head) + len(self.data)


def _head(record: Record) -> bytes:
    """The header block without its end: batch headers are added for each attempt."""
    lines = header_lines(record.headers) if record.headers else b""
    if record.msg_id is not None:
        lines += header_lines({"Nats-Msg-Id": record.msg_id})
    if record.ttl_s is not None:
        lines += b"Nats-TTL: %b\r\n" % ttl_text(record.ttl_s).encode()
    return HEADER_START + lines if lines else b""


class Lane:
    """Queue and writes in flight of one stream. No order is promised between records that wait at the same time."""

    def __init__(self, link: Link, route: Route) -> None:
        self.link = link
        self.route = route
        self.queue: deque[Pending] = deque()
        self._numbers = count()
        self._returned: list[Pending] = []
        """To be written again, before everything in the queue."""
        self._in_flight: set[Write] = set()
        self._gathering = Gathering(link.settings.batch_from)
        self._gather_timer: asyncio.TimerHandle | None = None
        self._pump_scheduled = False
        self._holding = False

    @property
    def waiting(self) -> int:
        return len(self.queue) + len(self._returned) + sum(len(write) for write in self._in_flight)

    def caller_came(self) -> None:
        """Records follow, one or many at once."""
        self._gathering.arrived(self.link.loop.time())

    def add(self, pending: Pending) -> None:
        pending.number = next(self._numbers)
        self.queue.append(pending)
        self.pump_soon()

    def pump_soon(self) -> None:
        """At the end of this turn of the loop, so that what arrives in the same turn goes out together."""
        if not self._pump_scheduled:
            self._pump_scheduled = True
            self.link.loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_scheduled = False
        if self._holding or not self.link.connected:
            return  # pumped again when the hold ends, or at the reconnect
        if self._returned:
            self._take_back()
        if self.route.atomic:
            # One group at a time: a second one in flight gained nothing, it only made both smaller.
            if self.queue and not self._in_flight and not self._gather():
                self._write_group()
        else:
            while self.queue and len(self._in_flight) < MAX_SINGLES:
                self._write_single(self.queue.popleft())

    def _gather(self) -> bool:
        """Whether more records are waited for."""
        if self._gather_timer is not None:
            if len(self.queue) < Gathering.ENOUGH:
                return True
            self._gather_timer.cancel()
            self._gather_timer = None
        at = self._gathering.wait_until(len(self.queue), self.link.loop.time())
        if at is not None:
            self._gather_timer = self.link.loop.call_at(at, self._step_over)
        return at is not None

    def _step_over(self) -> None:
        self._gather_timer = None
        self._pump()

    def _take_back(self) -> None:
        returned, self._returned = sorted(self._returned, key=lambda p: p.number, reverse=True), []
        # Past the duplicate window the server would store a repeated record a second time.
        forgotten = self.link.loop.time() - self.route.dedupe_s
        for pending in returned:
            if pending.settle is None:
                continue
            guarded = self.route.first_write_wins or EXPECT in pending.head
            if pending.maybe_stored and pending.first_written < forgotten and not guarded:
                self.expire(pending)
            else:
                self.queue.appendleft(pending)

    def _write_group(self) -> None:
        group: list[Pending] = []
        size = 0
        while self.queue and len(group) < MAX_BATCH and size < MAX_BATCH_BYTES:
            pending = self.queue.popleft()
            size += pending.size
            group.append(pending)
        self._write(group)

    def _write(self, group: list[Pending]) -> None:
        if len(group) < self.link.settings.batch_from:
            for pending in group:
                self._write_single(pending)
        else:
            self._start(BatchWrite(self, group, f"{_batch_prefix}{next(_batch_numbers):x}"), group)

    def _write_single(self, pending: Pending) -> None:
        self._start(SingleWrite(self, pending), (pending,))

    def _start(self, write: Write, group: Iterable[Pending]) -> None:
        now = self.link.loop.time()
        for pending in group:
            pending.first_written = pending.first_written or now
        self.link.stats.writes += 1
        self._in_flight.add(write)
        write.send()

    # ------------------------------------------------------------------ what writes report

    def done(self, write: Write) -> None:
        """Its records are settled."""
        self._in_flight.discard(write)
        if self.queue:
            self.pump_soon()

    def in_parts(self, write: BatchWrite, group: Iterable[Pending]) -> None:
        """The batch was refused, nothing of it is stored. The server does not say because of which record: each part
        asks for itself, and at last every record of a refused part."""
        self.link.stats.batches_refused += 1
        self._in_flight.discard(write)
        alive = [pending for pending in group if pending.settle is not None]
        size = -(-len(alive) // PARTS)
        for start in range(0, len(alive), max(1, size)):
            self._write(alive[start : start + size])
        self.pump_soon()

    def again(self, write: Write, group: Iterable[Pending], *, answered: bool) -> None:
        """Not stored as far as is known: written again with the same msg ids, ahead of all others.

        `answered`: the server said that the stream cannot store now; then all its records wait. Otherwise nothing was
        heard, and the record may be there.
        """
        self._in_flight.discard(write)
        alive = [pending for pending in group if pending.settle is not None]
        for pending in alive:
            pending.attempts += 1
            pending.maybe_stored |= not answered
        self.link.stats.publish_retries += len(alive)
        self._returned += alive
        if not answered:
            self.pump_soon()
        elif not self._holding:
            self._holding = True
            attempts = max((pending.attempts for pending in alive), default=1)
            self.link.loop.call_later(RETRY_S[min(attempts, len(RETRY_S)) - 1], self._release)

    def check_owner(self, write: Write, pending: Pending, failure: BusError) -> None:
        """Refused because something is there, which may be this very record."""
        self._in_flight.discard(write)
        self._start(OwnerCheck(self, pending, failure), (pending,))

    def _release(self) -> None:
        self._holding = False
        self._pump()

    # ------------------------------------------------------------------ time

    def sweep(self, now: float) -> None:
        """Settle what is past its deadline; send again what got no answer for too long."""
        for write in list(self._in_flight):
            write.sweep(now)
        for pending in [*self._returned, *self.queue]:
            if pending.deadline <= now:
                self.expire(pending)
        if self.queue and self.queue[0].settle is None:
            self.queue = deque(pending for pending in self.queue if pending.settle is not None)
        self._returned = [pending for pending in self._returned if pending.settle is not None]

    def expire(self, pending: Pending) -> None:
        if pending.settle is None:
            return
        subject = pending.subject.decode()
        if pending.maybe_stored:
            self.link.stats.publish_unknown += 1
            pending.finish(PublishUnknown(f"no answer for {subject} before the deadline", subject=subject))
        else:
            pending.finish(BusUnavailable(f"{subject} could not be sent before the deadline", subject=subject))
