"""Sampling: asks the queues how much there is to do. Owns the ways to ask cheaply; decides nothing."""

from __future__ import annotations

import asyncio

from squall_bus import Bus, BusError, ConsumerInfo
from squall_contracts import subjects
from squall_service.telemetry import log

PROBED_AT_ONCE = 256


class Sampler:
    """The WORK queues of the region."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._region = bus.topology.region
        self._canaries = subjects.canaries(self._region)
        self._shards = range(bus.topology.shards)

    async def all_inputs(self) -> dict[str, int] | None:
        """Waiting and running inputs by pool; pools without any are left out. None = a queue could not be asked.

        A work queue holds nothing but what waits or runs, and canaries: an empty one is not asked about its
        consumers."""
        try:
            counts = await asyncio.gather(*(self._shard_inputs(shard) for shard in self._shards))
        except BusError as error:
            log.warning("queue_not_sampled", reason=repr(error))
            return None
        total: dict[str, int] = {}
        for shard_counts in counts:
            for pool, inputs in shard_counts.items():
                total[pool] = total.get(pool, 0) + inputs
        return total

    async def _shard_inputs(self, shard: int) -> dict[str, int]:
        stream = subjects.work_stream(self._region, shard)
        if (await self._bus.stream_info(stream, self._canaries)).others <= 0:
            return {}
        return {c.name: there for c in await self._bus.list_consumers(stream) if (there := _inputs(c)) > 0}

    async def inputs_of(self, pool: str) -> int | None:
        """Waiting and running inputs of one pool; None = a queue could not be asked."""
        streams = [subjects.work_stream(self._region, shard) for shard in self._shards]
        try:
            found = await asyncio.gather(*(self._bus.consumer_info(stream, pool) for stream in streams))
        except BusError as error:
            log.warning("queue_not_sampled", pool=pool, reason=repr(error))
            return None
        return sum(_inputs(info) for info in found if info is not None)

    async def holds(self, pool: str) -> bool:
        """Whether there is any message of the pool, whatever its consumers say. Raises `BusError`."""
        for shard in self._shards:
            wanted = subjects.calls_of_pool(self._region, shard, pool)
            if (await self._bus.stream_info(subjects.work_stream(self._region, shard), wanted)).subjects:
                return True
        return False

    async def has_unfinished(self, pool: str, workspace: str) -> bool:
        """Whether the pool's queue holds anything that has no result.

        After a crash of the server, WORK may bring back inputs that have ended: they must not wake a pool."""
        for shard in self._shards:
            if await self._unfinished_in(shard, pool, workspace):
                return True
        return False

    async def _unfinished_in(self, shard: int, pool: str, workspace: str) -> bool:
        """Looks at the oldest first, and ends at the first that is unfinished: in all but the rare case at once."""
        stream = subjects.work_stream(self._region, shard)
        wanted = subjects.calls_of_pool(self._region, shard, pool)
        chunk: list[str] = []
        # A work queue refuses the consumer that reading headers alone would need.
        async for stored in self._bus.read(stream, wanted):
            call = subjects.parse_call(stored.subject)
            chunk.append(subjects.result(self._region, workspace, call.call, call.index))
            if len(chunk) == PROBED_AT_ONCE or stored.pending == 0:
                ended = await self._bus.get_many(subjects.results_stream(self._region, shard), chunk)
                if len(ended) < len(chunk):
                    return True
                chunk.clear()
        return False


def _inputs(consumer: ConsumerInfo) -> int:
    return consumer.pending + consumer.ack_pending
