"""Takeover: sees to it that the queue of one shard goes on taking over its journal after a restart of the bus server.

A server that recovers its streams in parallel may begin with the queue before the journal is there, or while the
journal has no leader. It then tries again after 12 s (no such stream) or 42 s (no answer), longer each time, and says
meanwhile that the queue is not behind. New calls would wait that long.
"""

from __future__ import annotations

from squall_bus import Bus, Sourcing, Stored, StreamInfo
from squall_contracts import subjects
from squall_scheduler.shard_tail import ShardTail
from squall_service.telemetry import log

SILENT_S = 3.0
"""The journal speaks to the queue every second; after a restart it begins to within 0.3 s."""
LOOKED_AT = 256
"""Messages at the end of the queue, in which one from the journal is looked for."""
SOURCE_HEADER = "Nats-Stream-Source"
"""Name of the source, sequence there, and more."""


class Takeover:
    """Of one shard."""

    def __init__(self, bus: Bus, tail: ShardTail) -> None:
        self._bus = bus
        self._tail = tail
        region = bus.topology.region
        self._journal = subjects.journal_stream(region, tail.shard)
        self._work = subjects.work_stream(region, tail.shard)
        self._silent_since: float | None = None

    async def check(self, work: StreamInfo, now: float) -> bool:
        """Make the server begin at once if it waits. False while it does not take over; `now` is monotonic."""
        source = work.sources.get(self._journal)
        if source is None or _speaks(source):
            self._silent_since = None
            return True
        if self._silent_since is None:
            self._silent_since = now
        if source.error or now >= self._silent_since + SILENT_S:
            start_seq = source.seq + 1 if source.seq else await self._start_seq(work)
            log.warning("queue_stood_still", stream=self._work, start_seq=start_seq, reason=source.error or "silence")
            await self._bus.restart_source(self._work, self._journal, start_seq)
            self._silent_since = now
        return False

    async def _start_seq(self, work: StreamInfo) -> int:
        """Where it goes on if the server has forgotten where it stopped: after the newest message that the queue has
        from the journal (what else of the journal is missing before that has left the queue, and is the reconciler's);
        with nothing in the queue, at the first input without a result."""
        newest = 0
        if work.messages:
            async for stored in self._bus.read(self._work, start_seq=max(1, work.last_seq - LOOKED_AT)):
                newest = max(newest, journal_seq_of(stored))
        return newest + 1 if newest else self._tail.open.first_seq() or self._tail.journal_seq + 1


def journal_seq_of(stored: Stored) -> int:
    """Which message of its source a message is; 0 when it was published here, as what is put back is."""
    told = stored.headers.get(SOURCE_HEADER, "").split()
    return int(told[1]) if len(told) > 1 and told[1].isdigit() else 0


def _speaks(source: Sourcing) -> bool:
    return not source.error and source.silent_s is not None and source.silent_s < SILENT_S
