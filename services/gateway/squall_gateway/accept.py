"""Accepting inputs: admission, then the journal. An input is acknowledged when the journal has it on disk, not before.

Owns the records in JOURNAL. The same input twice is one record: the subject takes only one, whoever writes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from squall.errors import ConflictError, ResourceExhaustedError, StorageFullError
from squall.http_api.protocol import parse_blob_ref
from squall.ids import shard_of
from squall.spec import Kind
from squall_bus import Bus, BusError, Published, Record, SubjectTaken
from squall_contracts import spans, subjects
from squall_contracts.calls import DEADLINE_HEADER, CallRequested, SpanVector
from squall_gateway.blob_places import BlobPlaces
from squall_gateway.call_headers import CallHeaders, blob_size
from squall_gateway.call_spans import SERVICE, Accepted, accepting_since, encode_rows, now_ns, trace_of
from squall_gateway.condition import Condition
from squall_gateway.directory import Directory
from squall_gateway.load import Loads
from squall_gateway.policy.admission import Limits, Refused, Situation, Wanted, admit
from squall_gateway.pools import Pools
from squall_gateway.targets import Target, is_waited_for
from squall_gateway.webhooks.users import WebhookUsers
from squall_service.clock import Clock
from squall_service.failpoints import failpoint

PUBLISH_S = 5.0
"""How long the journal write may take; beyond it the caller is told to ask again with the same id."""
SLICE = 100
"""Inputs of a map that are encoded in one turn of the event loop (about 3 ms): calls of others go on in between."""

OF_NEW_ONES = (ConflictError, ResourceExhaustedError, StorageFullError)
"""Refusals that say nothing about inputs which were accepted before."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input as it arrived."""

    index: int
    payload: bytes = b""
    blob: str | None = None
    redriven_from: str = ""
    """`<call>.<index>` of the dead letter that it was."""


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
    blobs: BlobPlaces
    condition: Condition
    limits: Limits
    clock: Clock
    webhooks: WebhookUsers
    trace_ratio: float
    """Of calls whose caller says nothing about a trace."""

    async def accept(
        self, call: CallHeaders, target: Target, given: Input, *, reply_to: str | None, received_ns: int
    ) -> Accepted:
        """One input. Raises the refusal, or the bus's error."""
        [accepted] = await self.accept_together([call], target, [given], reply_to=reply_to, received_ns=received_ns)
        return accepted

    async def accept_together(
        self,
        calls: Sequence[CallHeaders],
        target: Target,
        given: Sequence[Input],
        *,
        reply_to: str | None = None,
        received_ns: int,
    ) -> list[Accepted]:
        """Calls of one target, sorted by shard, with one input each. Raises if any of them is not in the journal."""
        deadline = await self._admit(calls[0], target, given, calls)
        began_ns = now_ns(self.clock)
        traces, batches = [trace_of(call, self.trace_ratio) for call in calls], dict[str, list[Record]]()
        for call, each, trace in zip(calls, given, traces, strict=True):
            # `gateway.accept` ends with the write, so it cannot be in what is written: it comes with `journal.publish`.
            rows = encode_rows(call) if trace.sampled else []
            record = self._record(call, target, each, Terms(deadline, trace.header, rows, reply_to))
            batches.setdefault(call.call[-2:], []).append(record)
        duplicates = await self._publish(calls[0].kind, target, *batches.values())
        ended_ns = now_ns(self.clock)
        return [
            Accepted(duplicate, trace, (accepting_since(call, received_ns), began_ns, ended_ns))
            for call, trace, duplicate in zip(calls, traces, duplicates, strict=True)
        ]

    async def accept_many(self, call: CallHeaders, target: Target, given: Sequence[Input], received_ns: int) -> int:
        """A chunk of a map; how many are in the journal now. Raises if any is not."""
        deadline = await self._admit(call, target, given)
        trace, rows = trace_of(call, self.trace_ratio), []
        if trace.sampled:
            since_ns = accepting_since(call, received_ns)
            accepting = spans.row(spans.GATEWAY_ACCEPT, "", SERVICE, since_ns, now_ns(self.clock))
            rows = [*encode_rows(call), accepting]
        terms = Terms(deadline, trace.header, rows, None)
        records: list[Record] = []
        for first in range(0, len(given), SLICE):
            records += [self._record(call, target, each, terms) for each in given[first : first + SLICE]]
            await asyncio.sleep(0)
        await self._publish(call.kind, target, records)
        return len(given)

    # ------------------------------------------------------------------ admission

    async def admit(self, call: CallHeaders, target: Target, given: Sequence[Input]) -> float:
        """Check what `accept` checks, without accepting: the deadline, or the refusal raised. For whoever must write
        something else first."""
        return await self._admit(call, target, given)

    async def _admit(
        self, call: CallHeaders, target: Target, given: Sequence[Input], calls: Sequence[CallHeaders] = ()
    ) -> float:
        """`calls`: one for each input, where they are of several."""
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
            if isinstance(decision.error, OF_NEW_ONES) and await self._were_accepted(
                calls or [call] * len(given), target, given
            ):
                return now + target.queue_limit_s
            raise decision.error
        if webhook := webhook_of(call, target):
            self.webhooks.check(webhook)
            await self.webhooks.open(target.function.workspace)
        await self._require_blobs(target.function.workspace, given)
        return decision.deadline

    async def _were_accepted(self, calls: Sequence[CallHeaders], target: Target, given: Sequence[Input]) -> bool:
        """Whether the journal has all of them: then this is a request whose answer was lost, repeated."""
        region = self.bus.topology.region
        for call, each in zip(calls, given, strict=True):
            stream = subjects.journal_stream(region, shard_of(call.call))
            subject = subjects.call(region, target.pool.pool, call.call, each.index)
            if await self.bus.get_last(stream, subject, from_leader=True) is None:
                return False
        return True

    async def _require_blobs(self, workspace: str, given: Sequence[Input]) -> None:
        """A record never names a blob that its workspace does not have."""
        for each in given:
            if each.blob is not None:
                await self.blobs.of(workspace).require(*parse_blob_ref(each.blob))

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
            webhook=webhook_of(call, target),
        )
        return Record(
            subjects.call(self.bus.topology.region, asked.pool, asked.call, asked.index),
            asked.encode(),
            {DEADLINE_HEADER: f"{asked.deadline:.3f}"},
            # Callers choose ids of calls: those of two workspaces may be the same.
            f"{asked.workspace}.{asked.call}.{asked.index}",
            target.journal_ttl_s,
        )

    async def _publish(self, kind: Kind, target: Target, *batches: Sequence[Record]) -> list[bool]:
        """Write all; whether each was there before. Raises the first error, after all were tried. A batch is of one
        shard."""
        records = sum(map(len, batches))
        pool = target.pool.pool
        if not self.pools.is_ready(pool):
            await self.pools.ensure(target.pool)
        sync = is_waited_for(kind)
        self.loads.took(pool, records, sync=sync)
        failpoint("gateway.admitted")
        outcomes = await self._write(batches)
        failpoint("gateway.stored")
        new = sum(isinstance(outcome, Published) and not outcome.duplicate for outcome in outcomes)
        self.loads.gave_back(pool, records - new, sync=sync)
        if not self.pools.is_ready(pool):
            # Removed as idle while we wrote: without its consumer nobody would ever see the input.
            await self.pools.ensure(target.pool)
        return [was_there(outcome) for outcome in outcomes]

    async def _write(self, batches: Sequence[Sequence[Record]]) -> list[Published | BusError]:
        """Each batch into its stream, all at the same time."""
        if len(batches) == 1:
            return await self.bus.publish_batch(batches[0], deadline_s=PUBLISH_S)
        written = await asyncio.gather(*(self.bus.publish_batch(batch, deadline_s=PUBLISH_S) for batch in batches))
        return [outcome for outcomes in written for outcome in outcomes]


def webhook_of(call: CallHeaders, target: Target) -> str:
    """Where the end of a call is told: its own webhook, else its function's; empty for none."""
    return call.webhook or target.function.spec.webhook


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
