"""The pools that have containers on this node. Opens and closes them; each one's work is in `pool`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from squall_contracts.functions import FunctionRecord
from squall_gpu_agent.pool import Pool, PoolWork

MAX_FINISHED = 1000


class Pools:
    """The pools that have containers on this node."""

    def __init__(self, work: PoolWork) -> None:
        self._work = work
        self._pools: dict[str, Pool] = {}
        self._opening: dict[str, asyncio.Lock] = {}

    def __iter__(self) -> Iterator[Pool]:
        return iter(list(self._pools.values()))

    def finished(self) -> dict[str, int]:
        """Inputs that ended here, by pool; those of pools that have left are kept for a while, for the last stats."""
        finished = self._work.finished
        if len(finished) > MAX_FINISHED:
            for pool in finished.keys() - self._pools.keys():
                del finished[pool]
        return dict(finished)

    def get(self, pool: str) -> Pool | None:
        """The pool, if it has containers here."""
        return self._pools.get(pool)

    async def open(self, pool: str, function: FunctionRecord) -> Pool:
        """The pool, ready to pull. May be called while the container still starts, to hide its cost."""
        async with self._opening.setdefault(pool, asyncio.Lock()):
            found = self._pools.get(pool)
            if found is None:
                found = Pool(pool, function, self._work)
                await found.open()
                self._pools[pool] = found
            return found

    async def close_if_empty(self, pool: str) -> None:
        """Called when a container of it has ended."""
        async with self._opening.setdefault(pool, asyncio.Lock()):
            found = self._pools.get(pool)
            if found is not None and not found.containers:
                await found.close()
                self._pools.pop(pool, None)

    async def close(self) -> None:
        """Pull nothing more, hand back what has not started."""
        async with asyncio.TaskGroup() as group:
            for pool in self._pools.values():
                group.create_task(pool.close())

    def probe(self) -> None:
        """Ask every shard once; called every second."""
        for pool in self._pools.values():
            pool.refresh(probe=True)
