"""Watching a run while it goes on: which inputs are in no queue, which claims there are, and what the law said earlier.

Reads the streams from where it left off, so that a look at an hour's run costs as little as one at a minute's. A bus
that does not answer is looked at again later.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping

from squall.errors import LocalPlatformError
from squall_bus import Bus, BusError, BusSettings, Stored, connect
from squall_contracts import subjects, topology
from squall_contracts.envelope import BadMessage
from squall_contracts.nodes import CONTAINERS, ClaimState, ContainerClaim
from squall_service.clock import SystemClock
from squall_verify.evidence import Key, Sample

EVERY_S = 2.0
FRESH_S = 3.0
"""An input that was accepted so shortly ago may still be on its way from the journal to its queue."""
CONNECT_AGAIN_S = 1.0
LIVE = (ClaimState.PROPOSED, ClaimState.STARTING, ClaimState.READY, ClaimState.DRAINING)
_CLOCK = SystemClock()


class Watcher:
    """Samples of one run, taken in a thread of its own."""

    def __init__(self, settings: Callable[[], BusSettings]) -> None:
        self._settings = settings
        self.samples: list[Sample] = []
        self.law: dict[str, str] = {}
        """Digest of each record of JOURNAL, RESULTS and ATTEMPTS that was seen, by stream and sequence."""
        self._next: dict[str, int] = defaultdict(lambda: 1)
        self._open: dict[Key, tuple[float, int, int]] = {}
        """When it was stored, its shard, and its place in that shard's journal."""
        self._early: set[Key] = set()
        """Ended before their journal record was read: a look takes a while."""
        self._over = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        asyncio.run(self._watch())

    def stop(self) -> None:
        """No more samples."""
        self._over.set()

    async def _watch(self) -> None:
        while not self._over.is_set():
            try:
                async with connect(self._settings(), topology.build()) as bus:
                    while not self._over.is_set():
                        await self._look(bus)
                        await asyncio.sleep(EVERY_S)
            except (BusError, LocalPlatformError, OSError, ValueError):
                await asyncio.sleep(CONNECT_AGAIN_S)

    async def _look(self, bus: Bus) -> None:
        """Journal, then queues, then results: what has its result by the last look was never missing."""
        region = bus.topology.region
        try:
            queued: set[Key] = set()
            for shard in range(bus.topology.shards):
                await self._follow(bus, subjects.journal_stream(region, shard), self._accepted)
                await self._follow(bus, subjects.attempts_stream(region, shard), lambda _: None)
            at = _CLOCK.now()
            taken_over: dict[int, int] = {}
            for shard in range(bus.topology.shards):
                info = await bus.stream_info(subjects.work_stream(region, shard), f"calls.{region}.>")
                queued |= {(place.call, place.index) for place in map(subjects.parse_call, info.subjects)}
                taken_over[shard] = info.sources[subjects.journal_stream(region, shard)].seq
            for shard in range(bus.topology.shards):
                await self._follow(bus, subjects.results_stream(region, shard), self._ended)
            claims = await self._claims(bus)
        except BusError:
            return
        # What the queue has not taken over from the journal yet is on its way.
        missing = [
            key
            for key, (since, shard, seq) in self._open.items()
            if key not in queued and at - since > FRESH_S and seq <= taken_over[shard]
        ]
        self.samples.append(Sample(at=at, claims=claims, missing=tuple(sorted(missing))))

    async def _follow(self, bus: Bus, stream: str, take: Callable[[Stored], None]) -> None:
        async for stored in bus.read(stream, start_seq=self._next[stream]):
            self._next[stream] = stored.seq + 1
            self.law[name_of(stream, stored)] = digest_of(stored)
            take(stored)

    def _accepted(self, stored: Stored) -> None:
        place = subjects.parse_call(stored.subject)
        key = (place.call, place.index)
        if key in self._early:
            self._early.remove(key)
        else:
            self._open[key] = (stored.stored_at, place.shard, stored.seq)

    def _ended(self, stored: Stored) -> None:
        place = subjects.parse_call(stored.subject)
        key = (place.call, place.index)
        if self._open.pop(key, None) is None:
            self._early.add(key)

    async def _claims(self, bus: Bus) -> dict[str, tuple[int, ...]]:
        found: dict[str, list[int]] = defaultdict(list)
        for entry in await bus.kv(CONTAINERS).entries():
            try:
                claim = ContainerClaim.decode(entry.value)
            except BadMessage:
                continue
            if claim.state in LIVE:
                found[claim.pool].append(claim.ordinal)
        return {pool: tuple(sorted(ordinals)) for pool, ordinals in found.items()}


def name_of(stream: str, stored: Stored) -> str:
    """A record of the law, for people to find."""
    return f"{stream} {stored.seq} {stored.subject}"


def digest_of(stored: Stored) -> str:
    """What must not change about it."""
    return hashlib.sha256(stored.subject.encode() + b"\0" + stored.data).hexdigest()[:16]


async def vanished(bus: Bus, law: Mapping[str, str]) -> list[str]:
    """Records that were seen, and are another or gone now."""
    present: dict[str, str] = {}
    for stream_of in (subjects.journal_stream, subjects.results_stream, subjects.attempts_stream):
        for shard in range(bus.topology.shards):
            stream = stream_of(bus.topology.region, shard)
            async for stored in bus.read(stream):
                present[name_of(stream, stored)] = digest_of(stored)
    return sorted(name for name, digest in law.items() if present.get(name) != digest)
