"""Takeover: sees to it that the queue of one shard goes on taking over its journal after a restart of the bus server.

A server that recovers its streams in parallel may begin with the queue before the journal is there, or while the
journal has no leader. It then tries again after 12 s (no such stream) or 42 s (no answer), longer each time, and says
meanwhile that the queue is not behind. New calls would wait that long.
"""

from __future__ import annotations

from squall_bus import Bus, Sourcing, StreamInfo
from squall_contracts import subjects
from squall_scheduler.shard_tail import ShardTail
from squall_service.telemetry import log

SILENT_S = 3.0
"""The journal speaks to the queue every second; after a restart it begins to within 0.3 s."""


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
            start_seq = self._start_seq(source)
            log.warning("queue_stood_still", stream=self._work, start_seq=start_seq, reason=source.error or "silence")
            await self._bus.restart_source(self._work, self._journal, start_seq)
            self._silent_since = now
        return False

    def _start_seq(self, source: Sourcing) -> int:
        """Where it stopped; if the server has forgotten that, the first input without a result."""
        return source.seq + 1 if source.seq else self._tail.open.first_seq() or self._tail.journal_seq + 1


def _speaks(source: Sourcing) -> bool:
    return not source.error and source.silent_s is not None and source.silent_s < SILENT_S
