"""Canaries: every stream of a shard is written and read every now and then, because a server may say that a stream is
well which takes nothing any more (a replica group that is stuck, a disk that gives errors).

Owns the subjects `canary.>`. A canary is one message with a TTL shorter than the distance of two, on a subject of its
own in the stream: streams do not grow, first-write-wins streams can take the next one, nobody else's filter sees it.
Only the queue's lives longer, so that the queue is never empty.
Why so: docs/decisions/0012-a-canary-in-each-stream.md.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from squall_bus import Bus, BusError, SubjectTaken
from squall_contracts import subjects
from squall_contracts.health import HEALTH, StreamsChecked, streams_key
from squall_scheduler.shard_tail import ShardTail
from squall_service.clock import Clock
from squall_service.telemetry import log

EVERY_S = 30.0
TTL_S = 20.0
QUEUE_TTL_S = 45.0
"""The queue's is there until the next one has come: an emptied queue gives up the file that it writes to, and begins
another (0.15 ms of the server's CPU). So it would for each lone call. Decision 0018."""
OVERDUE_S = 10.0
AGAIN_S = 5.0
WRITE_S = 3.5
"""Less than after which the bus writes again: an outcome that is unknown is a failure here."""
READ_S = 2.0
"""A replica may be behind the leader that took the write."""
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Perch:
    """One stream, and the subject of its canary."""

    stream: str
    subject: str


def perches(bus: Bus, shard: int) -> list[Perch]:
    """The streams that a shard's canaries sit in; the region's are shard 0's."""
    ours = f"_{bus.topology.region}_{subjects.shard_token(shard)}"
    found = [Perch(s.name, s.canary) for s in bus.topology.streams if s.canary and s.name.endswith(ours)]
    if shard == 0:
        region = f"_{bus.topology.region}"
        found += [Perch(s.name, s.canary) for s in bus.topology.streams if s.canary and s.name.endswith(region)]
        found += [Perch(subjects.kv_stream(b.name), b.canary) for b in bus.topology.buckets if b.canary]
    return found


class Canaries:
    """Those of one shard."""

    def __init__(self, bus: Bus, clock: Clock, tail: ShardTail, took_ms: dict[str, float]) -> None:
        self._took_ms = took_ms
        """The metric of all shards."""
        self._bus = bus
        self._clock = clock
        self._tail = tail
        self._perches = perches(bus, tail.shard)
        self._journal = subjects.journal_stream(bus.topology.region, tail.shard)
        self._work = subjects.work_stream(bus.topology.region, tail.shard)
        self._next = 0.0
        self._next_round = 0.0
        self.failing: dict[str, str] = {}

    def reason(self) -> str | None:
        """Why not all is well."""
        return "; ".join(f"{stream}: {why}" for stream, why in self.failing.items()) or None

    def close(self) -> None:
        """Another scheduler has the shard now."""
        for perch in self._perches:
            self._took_ms.pop(perch.stream, None)

    async def tick(self) -> None:
        """A round, when it is time."""
        now = self._clock.monotonic()
        if now < self._next or not self._bus.connected:
            return
        # What failed is looked at again soon: a restart of the server must not look like a broken stream for long.
        again = now < self._next_round
        self._next_round = self._next_round if again else now + EVERY_S
        # One after the other: a burst of writes to all streams at once would be a hiccup of its own every 30 s.
        for perch in self._perches:
            if not again or perch.stream in self.failing:
                await self._check(perch)
        self._next = min(self._next_round, self._clock.monotonic() + AGAIN_S) if self.failing else self._next_round
        await self._tell()

    async def _check(self, perch: Perch) -> None:
        began = self._clock.monotonic()
        song = b"%d" % round(self._clock.now() * 1e6)
        try:
            await self._write(perch, song)
            await self._read(perch, song)
        except SubjectTaken:
            await self._check_taken(perch, began)
        except BusError as error:
            self._failed(perch.stream, f"{error.code}: {error.message}")
        except TimeoutError:
            self._failed(perch.stream, "what was written cannot be read")
        else:
            self._sang(perch.stream, began)

    async def _check_taken(self, perch: Perch, began: float) -> None:
        """Somebody's canary sits there: the last scheduler's, or ours whose answer was lost. Or one that never goes."""
        try:
            stored = await self._bus.get_last(perch.stream, perch.subject)
        except BusError as error:
            self._failed(perch.stream, f"{error.code}: {error.message}")
            return
        if stored is not None and self._clock.now() - stored.stored_at > TTL_S + OVERDUE_S:
            self._failed(perch.stream, "a message is there that should have expired")
        else:
            self._sang(perch.stream, began)

    def _sang(self, stream: str, began: float) -> None:
        self._took_ms[stream] = (self._clock.monotonic() - began) * 1000
        if self.failing.pop(stream, None) is not None:
            log.warning("canary_recovered", stream=stream)

    def _failed(self, stream: str, why: str) -> None:
        if stream not in self.failing:
            log.error("canary_failed", stream=stream, reason=why)
        self.failing[stream] = why
        self._took_ms[stream] = -1.0

    async def _write(self, perch: Perch, song: bytes) -> None:
        if perch.stream != self._journal:
            ttl_s = QUEUE_TTL_S if perch.stream == self._work else TTL_S
            await self._bus.publish(perch.subject, song, ttl_s=ttl_s, deadline_s=WRITE_S)
            return
        with self._tail.another() as stored_at:
            stored_at((await self._bus.publish(perch.subject, song, ttl_s=TTL_S, deadline_s=WRITE_S)).seq)

    async def _read(self, perch: Perch, song: bytes) -> None:
        async with asyncio.timeout(READ_S):
            while True:
                stored = await self._bus.get_last(perch.stream, perch.subject)
                if stored is not None and stored.data == song:
                    return
                await asyncio.sleep(POLL_S)

    async def _tell(self) -> None:
        """For `squall doctor`, by way of the gateway."""
        took_ms = {perch.stream: self._took_ms.get(perch.stream, 0.0) for perch in self._perches}
        slowest = max(took_ms, key=lambda stream: took_ms[stream])
        checked = StreamsChecked(
            at=self._clock.now(),
            streams=len(self._perches),
            slowest=slowest,
            slowest_ms=took_ms[slowest],
            failing=dict(self.failing),
        )
        try:
            await self._bus.kv(HEALTH).put(streams_key(self._tail.shard), checked.encode())
        except BusError as error:
            log.warning("canaries_not_told", reason=error.message)
