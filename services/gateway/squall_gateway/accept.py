"""Accepting inputs: admission, then the journal. An input is acknowledged when the journal has it on disk, not before.

Owns the records in JOURNAL. The same input twice is one record: the subject takes only one, whoever writes first.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from squall.http_api import parse_blob_ref
from squall.spec import Kind
from squall_bus import Bus, BusError, Published, Record, SubjectTaken
from squall_contracts import spans, subjects
from squall_contracts.calls import DEADLINE_HEADER, CallRequested, SpanVector
from squall_gateway.blobs import Blobs
from squall_gateway.call_headers import CallHeaders, blob_size
from squall_gateway.condition import Condition
from squall_gateway.directory import Directory
from squall_gateway.load import Loads
from squall_gateway.policy.admission import Limits, Refused, Situation, Wanted, admit
from squall_gateway.pools import Pools
from squall_gateway.targets import Target, is_waited_for
from squall_service.clock import Clock
from squall_service.failpoints import failpoint

PUBLISH_S = 5.0
"""How long the journal write may take; beyond it the caller is told to ask again with the same id."""
SERVICE = "gateway"
SLICE = 100
"""Inputs of a map that are encoded in one turn of the event loop (about 3 ms): calls of others go on in between."""
MAX_SENT_AGE_NS = 60_000_000_000
"""An older time of sending is another clock, not a slow network."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input as it arrived."""

    index: int
    payload: bytes = b""
    blob: str | None = None
    redriven_from: str = ""
    """`<call>.<index>` of the dead letter that it was."""


class Accepted(NamedTuple):
    """The journal has it."""

    duplicate: bool
    """It had it before: whoever asked first has the reply."""
    trace_id: str
    parent_id: str
    """The caller's span."""
    times_ns: tuple[int, int, int]
    """When accepting began, when the journal write began, and when it ended."""

    @property
    def rows(self) -> SpanVector:
        """What accepting took."""
        began, writing, ended = self.times_ns
        return [
            spans.row(spans.GATEWAY_ACCEPT, "", SERVICE, began, ended),
            spans.row(spans.JOURNAL_PUBLISH, spans.GATEWAY_ACCEPT, SERVICE, writing, ended),
        ]


class Terms(NamedTuple):
    """What all inputs of one request have in common."""

    deadline: float
    traceparent: str
    rows: SpanVector
    reply_to: str | None


@dataclass(frozen=True, slots=True)
class Acceptor:
    """The way into the journal."""

    bus: Bus
    directory: Directory
    pools: Pools
    loads: Loads
    blobs: Blobs
    condition: Condition
    limits: Limits
    clock: Clock

    async def accept(
        self, call: CallHeaders, target: Target, given: Input, *, reply_to: str | None, received_ns: int
    ) -> Accepted:
        """One input. Raises the refusal, or the bus's error."""
        deadline = await self._admit(call, target, [given])
        trace_id, parent_id = trace_of(call)
        began_ns = now_ns(self.clock)
        # `gateway.accept` ends with the write, so it cannot travel in what is written: it comes with `journal.publish`.
        *rows, accept = accept_rows(call, received_ns, began_ns)
        terms = Terms(deadline, spans.traceparent(trace_id, parent_id), rows, reply_to)
        [duplicate] = await self._publish(call, target, [self._record(call, target, given, terms)])
        return Accepted(duplicate, trace_id, parent_id, (accept[3], began_ns, now_ns(self.clock)))

    async def accept_many(self, call: CallHeaders, target: Target, given: Sequence[Input], received_ns: int) -> int:
        """A chunk of a map; how many are in the journal now. Raises if any is not."""
        deadline = await self._admit(call, target, given)
        trace_id, parent_id = trace_of(call)
        rows = accept_rows(call, received_ns, now_ns(self.clock))
        terms = Terms(deadline, spans.traceparent(trace_id, parent_id), rows, None)
        records: list[Record] = []
        for first in range(0, len(given), SLICE):
            records += [self._record(call, target, each, terms) for each in given[first : first + SLICE]]
            await asyncio.sleep(0)
        await self._publish(call, target, records)
        return len(given)

    # ------------------------------------------------------------------ admission

    async def admit(self, call: CallHeaders, target: Target, given: Sequence[Input]) -> float:
        """Check what `accept` checks, without accepting: the deadline, or the refusal raised. For whoever must write
        something else first."""
        return await self._admit(call, target, given)

    async def _admit(self, call: CallHeaders, target: Target, given: Sequence[Input]) -> float:
        now = self.clock.now()
        pool = target.pool.pool
        load = await self.loads.of(pool, len(given), now)
        app = self.directory.known_app(call.app)
        inline_bytes, blob_bytes = largest(given)
        decision = admit(
            Wanted(call.kind, len(given), inline_bytes, blob_bytes, target.is_generator),
            Situation(
                app=call.app,
                app_state="" if app is None else app.record.state,
                pending=load.pending,
                pending_sync=load.open_sync,
                storage_full=self.condition.storage_full,
                bus_down_s=self.condition.bus_down_s,
            ),
            self.limits,
            queue_limit_s=target.queue_limit_s,
            now=now,
        )
        if isinstance(decision, Refused):
            raise decision.error
        await self._require_blobs(given)
        return decision.deadline

    async def _require_blobs(self, given: Sequence[Input]) -> None:
        """A record never names a blob that is not there."""
        for each in given:
            if each.blob is not None:
                await self.blobs.require(*parse_blob_ref(each.blob))

    # ------------------------------------------------------------------ the journal

    def _record(self, call: CallHeaders, target: Target, given: Input, terms: Terms) -> Record:
        function = target.function
        asked = CallRequested(
            call=call.call,
            index=given.index,
            pool=target.pool.pool,
            function=function.function_id,
            workspace=function.workspace,
            app=function.app_id,
            kind=call.kind.value,
            accepted_at=terms.deadline - target.queue_limit_s,
            deadline=terms.deadline,
            method=call.method,
            encoding=call.encoding,
            payload=given.payload,
            blob=given.blob,
            reply_to=terms.reply_to,
            parent=call.parent,
            traceparent=terms.traceparent,
            spans=terms.rows,
            parameters=target.pool.parameters if call.kind is Kind.SPAWN else "",
            redriven_from=given.redriven_from,
            keyed=bool(call.idempotency_key),
        )
        return Record(
            subjects.call(self.bus.topology.region, asked.pool, asked.call, asked.index),
            asked.encode(),
            {DEADLINE_HEADER: f"{asked.deadline:.3f}"},
            f"{asked.call}.{asked.index}",
            target.journal_ttl_s,
        )

    async def _publish(self, call: CallHeaders, target: Target, records: Sequence[Record]) -> list[bool]:
        """Write all; whether each was there before. Raises the first error, after all were tried."""
        pool = target.pool.pool
        if not self.pools.is_ready(pool):
            await self.pools.ensure(target.pool)
        sync = is_waited_for(call.kind)
        self.loads.took(pool, len(records), sync=sync)
        failpoint("gateway.admitted")
        outcomes = await self.bus.publish_batch(records, deadline_s=PUBLISH_S)
        failpoint("gateway.stored")
        new = sum(isinstance(outcome, Published) and not outcome.duplicate for outcome in outcomes)
        self.loads.gave_back(pool, len(records) - new, sync=sync)
        if not self.pools.is_ready(pool):
            # Removed as idle while we wrote: without its consumer nobody would ever see the input.
            await self.pools.ensure(target.pool)
        return [was_there(outcome) for outcome in outcomes]


def largest(given: Sequence[Input]) -> tuple[int, int]:
    """Sizes of the largest inline payload and of the largest one in the blob store."""
    inline_bytes = blob_bytes = 0
    for each in given:
        inline_bytes = max(inline_bytes, len(each.payload))
        if each.blob is not None:
            blob_bytes = max(blob_bytes, blob_size(each.blob))
    return inline_bytes, blob_bytes


def was_there(outcome: Published | BusError) -> bool:
    """Whether the journal had the input before. Raises what kept it from having it."""
    if isinstance(outcome, Published):
        return outcome.duplicate
    if isinstance(outcome, SubjectTaken):
        return True
    raise outcome


def trace_of(call: CallHeaders) -> tuple[str, str]:
    """Trace id and span id of the caller's span `call`; made from the call id when the caller sent none."""
    trace_id, parent_id = spans.parse_traceparent(call.traceparent)
    if not trace_id:
        trace_id = hashlib.sha256(call.call.encode()).hexdigest()[:32]
        parent_id = spans.span_id(call.call, 0, "", spans.CALL)
    return trace_id, parent_id


def accept_rows(call: CallHeaders, received_ns: int, now: int) -> SpanVector:
    """The phases until the journal write begins. The way here belongs to `gateway.accept`: it starts when the caller
    had encoded its arguments, if our clocks agree."""
    if call.sent_ns is None:
        return [spans.row(spans.GATEWAY_ACCEPT, "", SERVICE, received_ns, now)]
    began_ns, sent_ns = call.sent_ns
    if not 0 <= received_ns - sent_ns <= MAX_SENT_AGE_NS:
        sent_ns = received_ns
    return [
        spans.row(spans.ARGS_ENCODE, "", "sdk", began_ns, call.sent_ns[1]),
        spans.row(spans.GATEWAY_ACCEPT, "", SERVICE, sent_ns, now),
    ]


def now_ns(clock: Clock) -> int:
    """Wall clock in nanoseconds, as spans want it."""
    return int(clock.now() * 1e9)
