"""Pools as the bus needs them: the record and the durable consumers exist before the first input is published."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from squall.errors import ServiceError
from squall_bus import Bus, ConsumerSpec, KeyExists, NotFound
from squall_contracts import subjects
from squall_contracts.functions import SPECS, PoolRecord, pool_key
from squall_contracts.topology import LEASE_S
from squall_gateway.directory import Directory
from squall_service.clock import Clock


class Pools:
    """Creates what is missing, once for each pool."""

    def __init__(self, bus: Bus, directory: Directory, clock: Clock) -> None:
        self._bus = bus
        self._specs = bus.kv(SPECS)
        self._directory = directory
        self._clock = clock
        self._ready: set[str] = set()
        self._creating: dict[str, asyncio.Lock] = {}

    def is_ready(self, pool: str) -> bool:
        """Whether inputs may be published. A pool that was removed in the meantime is not ready any more."""
        return pool in self._ready and self._directory.pool(pool) is not None

    async def ensure(self, pool: PoolRecord) -> None:
        """Make the pool's record, and its consumer in every shard: agents pull from all of them, and may make none."""
        lock = self._creating.setdefault(pool.pool, asyncio.Lock())
        async with lock:
            if self.is_ready(pool.pool):
                return
            shards = range(self._bus.topology.shards)
            await asyncio.gather(
                self._ensure_record(pool), *(self._ensure_consumer(pool.pool, shard) for shard in shards)
            )
            self._ready.add(pool.pool)
        if not lock.locked():
            self._creating.pop(pool.pool, None)

    async def _ensure_consumer(self, pool: str, shard: int) -> None:
        region = self._bus.topology.region
        wanted = ConsumerSpec(name=pool, filter_subject=subjects.calls_of_pool(region, shard, pool), ack_wait_s=LEASE_S)
        try:
            await self._bus.ensure_consumer(subjects.work_stream(region, shard), wanted)
        except NotFound as error:  # it was lost; the reconciler makes it again within a lease
            raise ServiceError(f"queue {shard} is being made again") from error

    async def _ensure_record(self, pool: PoolRecord) -> None:
        """Make the pool known to autoscaler and agents."""
        if self._directory.pool(pool.pool) is not None:
            return
        # Pools that were removed after they had been empty for a while took their consumers with them.
        self._ready = {name for name in self._ready if self._directory.pool(name) is not None}
        record = replace(pool, created_at=self._clock.now())
        try:
            await self._specs.create(pool_key(pool.pool), record.encode())
        except KeyExists:
            pass
        self._directory.saw_pool(record)
