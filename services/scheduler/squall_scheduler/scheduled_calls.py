"""Scheduled calls: the one call of a tick, made so that making it twice is making it once. Decides nothing."""

from __future__ import annotations

import asyncio
import hashlib
import pickle

from squall.spec import Kind
from squall_bus import Bus, ConsumerSpec, KeyExists, SubjectTaken
from squall_contracts import spans, subjects
from squall_contracts.calls import DEADLINE_HEADER, CallRequested
from squall_contracts.functions import SPECS, FunctionRecord, PoolRecord, pool_id, pool_key
from squall_contracts.retention import journal_ttl_s
from squall_contracts.schedules import ScheduleRecord, call_of_tick
from squall_contracts.topology import LEASE_S
from squall_scheduler.facts import Facts
from squall_scheduler.state import PoolId
from squall_service.clock import Clock

NO_ARGUMENTS = pickle.dumps(((), {}), 4)


class ScheduledCalls:
    """Writes calls into the journal, as a gateway does."""

    def __init__(self, bus: Bus, clock: Clock, facts: Facts) -> None:
        self._bus = bus
        self._clock = clock
        self._facts = facts
        self._opened: set[str] = set()

    async def make(self, record: ScheduleRecord, tick: float, function: FunctionRecord) -> str:
        """The call of a tick; its id. Raises the bus's errors: then it may or may not be there, and is made again."""
        region, now = self._bus.topology.region, self._clock.now()
        pool, call = pool_id(function.function_id), call_of_tick(record, tick, self._bus.topology.shards)
        await self._open(pool, function)
        deadline = now + function.spec.queue_limit_s
        asked = CallRequested(
            call=call,
            index=0,
            pool=pool,
            function=function.function_id,
            workspace=function.workspace,
            app=function.app_id,
            kind=Kind.SPAWN.value,
            accepted_at=now,
            deadline=deadline,
            payload=NO_ARGUMENTS,
            traceparent=_trace_of(call),
            webhook=function.spec.webhook,
        )
        try:
            await self._bus.publish(
                subjects.call(region, pool, call, 0),
                asked.encode(),
                headers={DEADLINE_HEADER: f"{deadline:.3f}"},
                msg_id=f"{function.workspace}.{call}.0",
                ttl_s=journal_ttl_s(function.spec),
            )
        except SubjectTaken:
            pass  # by another scheduler, or by this one before it could write that down
        return call

    async def _open(self, pool: str, function: FunctionRecord) -> None:
        """The pool's record and consumers, before its first input."""
        if pool in self._opened and self._facts.declared.record(PoolId(pool)) is not None:
            return
        record = PoolRecord(
            pool=pool,
            function_id=function.function_id,
            app_id=function.app_id,
            workspace=function.workspace,
            created_at=self._clock.now(),
        )
        try:
            await self._bus.kv(SPECS).create(pool_key(pool), record.encode())
        except KeyExists:
            pass
        region = self._bus.topology.region
        await asyncio.gather(
            *(
                self._bus.ensure_consumer(
                    subjects.work_stream(region, shard),
                    ConsumerSpec(
                        name=pool, filter_subject=subjects.calls_of_pool(region, shard, pool), ack_wait_s=LEASE_S
                    ),
                )
                for shard in range(self._bus.topology.shards)
            )
        )
        self._opened.add(pool)


def _trace_of(call: str) -> str:
    """A trace of its own, which begins with the call."""
    trace_id = hashlib.sha256(call.encode()).hexdigest()[:32]
    return spans.traceparent(trace_id, spans.span_id(call, 0, "", spans.CALL), True)
