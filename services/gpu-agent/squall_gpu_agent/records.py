"""Records: functions and pools as the gateway wrote them. Read once each; they never change."""

from __future__ import annotations

from typing import TypeVar

from squall.errors import NotFoundError
from squall_bus import Bus
from squall_contracts.functions import SPECS, FunctionRecord, PoolRecord, pool_key

V = TypeVar("V")
MAX_CACHED = 4096


class Records:
    """A cache over the bucket `specs`."""

    def __init__(self, bus: Bus) -> None:
        self._specs = bus.kv(SPECS)
        self._functions: dict[str, FunctionRecord] = {}
        self._pools: dict[str, PoolRecord] = {}

    async def function(self, function_id: str) -> FunctionRecord:
        """The function version of that id. Raises `NotFoundError`."""
        found = self._functions.get(function_id)
        if found is None:
            found = FunctionRecord.decode(await self._read(function_id, "function"))
            _bound(self._functions)[function_id] = found
        return found

    async def pool(self, pool: str) -> PoolRecord:
        """The pool of that id. Raises `NotFoundError`."""
        found = self._pools.get(pool)
        if found is None:
            found = PoolRecord.decode(await self._read(pool_key(pool), "pool"))
            _bound(self._pools)[pool] = found
        return found

    async def _read(self, key: str, what: str) -> bytes:
        entry = await self._specs.get(key)
        if entry is None:
            raise NotFoundError(f"there is no record of {what} {key}")
        return entry.value


def _bound(cache: dict[str, V]) -> dict[str, V]:
    if len(cache) >= MAX_CACHED:
        cache.clear()
    return cache
