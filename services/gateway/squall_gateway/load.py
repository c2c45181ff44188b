"""How much is queued: an estimate per pool that is exact where it matters. Keeps counts, never scans.

A sample is the sum of the pool's consumers over all shards (0.2 ms each). Between samples what this gateway took is
added. A sample is taken after every hundredth part of the limit, and before anything is refused.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from squall_bus import Bus
from squall_contracts import subjects
from squall_gateway.policy.admission import Limits

MAX_POOLS = 20_000
REFUSING_S = 0.1
"""While a pool is full, one sample serves everybody who is refused in this time."""
PARTS = 100
"""A sample after each such part of the limit: n gateways together are at most n/100 over it."""


@dataclass(slots=True)
class PoolLoad:
    """Counts of one pool."""

    sampled: int = 0
    taken: int = 0
    """Inputs taken here since the sample."""
    taken_sync: int = 0
    """The waited-for ones among them."""
    open_sync: int = 0
    """Waited-for inputs taken here whose result was not seen here yet; never more than the queue holds."""
    sampled_at: float = float("-inf")

    @property
    def pending(self) -> int:
        return self.sampled + self.taken


class Loads:
    """The loads of all pools that this gateway takes inputs for."""

    def __init__(self, bus: Bus, limits: Limits) -> None:
        self._bus = bus
        self._limits = limits
        self._pools: dict[str, PoolLoad] = {}

    async def of(self, pool: str, inputs: int, now: float) -> PoolLoad:
        """The pool's load, sampled anew if that could decide whether `inputs` more are taken."""
        load = self._remember(pool)
        if self._may_refuse(load, inputs):
            if now - load.sampled_at > REFUSING_S:
                await self._sample(pool, load, now)
        elif load.taken * PARTS > self._limits.pending or load.taken_sync * PARTS > self._limits.pending_sync:
            await self._sample(pool, load, now)
        return load

    def _may_refuse(self, load: PoolLoad, inputs: int) -> bool:
        return load.pending + inputs > self._limits.pending or load.open_sync + inputs > self._limits.pending_sync

    async def _sample(self, pool: str, load: PoolLoad, now: float) -> None:
        load.sampled_at = now
        taken, taken_sync = load.taken, load.taken_sync
        load.sampled = await backlog(self._bus, pool)
        # What was taken while the sample was on its way may or may not be in it: counted once more, never lost.
        load.taken -= taken
        load.taken_sync -= taken_sync
        load.open_sync = min(load.open_sync, load.pending)

    def took(self, pool: str, inputs: int, *, sync: bool) -> None:
        """Inputs were taken."""
        load = self._remember(pool)
        load.taken += inputs
        if sync:
            load.taken_sync += inputs
            load.open_sync += inputs

    def gave_back(self, pool: str, inputs: int, *, sync: bool) -> None:
        """Inputs counted by `took` turned out to be there already, or were not stored."""
        load = self._pools.get(pool)
        if load is not None and inputs:
            load.taken -= inputs
            if sync:
                load.taken_sync -= inputs
                load.open_sync = max(0, load.open_sync - inputs)

    def ended(self, pool: str, inputs: int = 1) -> None:
        """Results of waited-for inputs were seen."""
        load = self._pools.get(pool)
        if load is not None:
            load.open_sync = max(0, load.open_sync - inputs)

    def _remember(self, pool: str) -> PoolLoad:
        load = self._pools.get(pool)
        if load is None:
            if len(self._pools) >= MAX_POOLS:
                # A forgotten pool is sampled anew: nothing is lost with its counts but the one sample.
                self._pools = {name: each for name, each in self._pools.items() if each.taken or each.open_sync}
            load = self._pools[pool] = PoolLoad()
        return load


async def backlog(bus: Bus, pool: str) -> int:
    """Inputs of a pool that wait or run, in every shard."""
    topology = bus.topology
    streams = [subjects.work_stream(topology.region, shard) for shard in range(topology.shards)]
    # Not a task group: its ExceptionGroup would hide from the edge that the caller may ask again.
    found = await asyncio.gather(*(bus.consumer_info(stream, pool) for stream in streams))
    return sum(info.pending + info.ack_pending for info in found if info is not None)
