"""Retiring: removes what is left of pools that nobody will use again, once they have been empty for a while.

Owns the end of a pool: its record, its stored decision, its consumers. The record goes first: a gateway that wants the
pool after that makes all of it again, and what was accepted just before is found by a last look at the queue.
"""

from __future__ import annotations

from squall_autoscaler.facts import Facts
from squall_autoscaler.sampling import Sampler
from squall_bus import Bus, BusError, WrongRevision
from squall_contracts import subjects
from squall_contracts.functions import SPECS, pool_key
from squall_contracts.scaling import DESIRED
from squall_service.telemetry import log

EMPTY_S = 60.0


class Retiring:
    """Which retired pools are empty, and since when."""

    def __init__(self, bus: Bus, facts: Facts, sampler: Sampler) -> None:
        self._bus = bus
        self._sampler = sampler
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
        record, specs = self._facts.record(pool), self._bus.kv(SPECS)
        try:
            if await self._has_inputs(pool):
                return
            if decision.revision:
                await self._bus.kv(DESIRED).delete(pool, revision=decision.revision)
            await specs.delete(pool_key(pool))
            if record is not None and await self._has_inputs(pool):  # accepted a moment ago
                await specs.create(pool_key(pool), record.encode())
                return
            for shard in range(self._bus.topology.shards):
                await self._bus.delete_consumer(subjects.work_stream(region, shard), pool)
        except WrongRevision:
            return  # somebody wants it again
        except BusError as error:
            log.warning("pool_not_removed", pool=pool, reason=repr(error))
            return
        log.info("pool_removed", pool=pool)

    async def _has_inputs(self, pool: str) -> bool:
        """Also by the messages themselves: a consumer that has lost its memory in a crash of the server says 0."""
        return await self._sampler.inputs_of(pool) != 0 or await self._sampler.holds(pool)
