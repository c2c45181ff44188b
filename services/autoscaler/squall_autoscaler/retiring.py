"""Retiring: removes what is left of pools that nobody will use again, once they have been empty for a while.

Owns the end of a pool: its consumers, its stored decision, its record. A consumer is deleted before the record, so that a
gateway that still knows the pool makes both again rather than publish to nobody.
"""

from __future__ import annotations

from squall_autoscaler.facts import Facts
from squall_bus import Bus, BusError, WrongRevision
from squall_contracts import subjects
from squall_contracts.functions import SPECS, pool_key
from squall_contracts.scaling import DESIRED
from squall_service.telemetry import log

EMPTY_S = 60.0


class Retiring:
    """Which retired pools are empty, and since when."""

    def __init__(self, bus: Bus, facts: Facts) -> None:
        self._bus = bus
        self._facts = facts
        self._empty_since: dict[str, float] = {}

    async def saw(self, pool: str, inputs: int | None, now: float) -> None:
        """A look at a pool whose situation is stopped or retired; anything else ends its term."""
        situation = self._facts.situation(pool)
        over = situation is not None and (situation.stopped or situation.retired)
        if not over or inputs != 0 or self._facts.claims(pool) or self._facts.decision(pool).count:
            self._empty_since.pop(pool, None)
        elif now - self._empty_since.setdefault(pool, now) >= EMPTY_S:
            del self._empty_since[pool]
            await self._remove(pool)

    async def _remove(self, pool: str) -> None:
        region, decision = self._bus.topology.region, self._facts.decision(pool)
        try:
            for shard in range(self._bus.topology.shards):
                await self._bus.delete_consumer(subjects.work_stream(region, shard), pool)
            if decision.revision:
                await self._bus.kv(DESIRED).delete(pool, revision=decision.revision)
            await self._bus.kv(SPECS).delete(pool_key(pool))
        except WrongRevision:
            return  # somebody wants it again
        except BusError as error:
            log.warning("pool_not_removed", pool=pool, reason=repr(error))
            return
        log.info("pool_removed", pool=pool)
