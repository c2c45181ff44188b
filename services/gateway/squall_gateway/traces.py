"""Traces: the spans of a call and its critical path. Reads SPANS by trace id; writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from squall.errors import NotFoundError
from squall.http_api.traces import PhaseInfo, SpanInfo, Trace
from squall.ids import is_sampled
from squall.spec import Kind
from squall_bus import Bus, Stored
from squall_contracts import spans, subjects
from squall_contracts.calls import CallRequested
from squall_contracts.envelope import BadMessage
from squall_contracts.spans import SpanBatch, expand
from squall_gateway.caller_spans import CallerSpans
from squall_gateway.policy.critical_path import CriticalPath, Interval, critical_path
from squall_gateway.results import Results, closing
from squall_gateway.single_copies import check_copy
from squall_gateway.trace_owners import TraceOwners
from squall_gateway.web.records import trace_of
from squall_service.telemetry import log

MAX_SPANS = 5000
"""Spans of one trace that are read: a trace may be a whole program's."""


@dataclass(frozen=True, slots=True)
class Traces:
    """Reads spans."""

    bus: Bus
    results: Results
    caller_spans: CallerSpans
    owners: TraceOwners
    ratio: float
    """Of the traces that begin here."""

    async def of_call(self, call: str, index: int, workspace: str) -> Trace:
        """The trace of one input. Raises `NotFoundError` also when it was never recorded, `OutputExpiredError`."""
        asked = await self.results.journal_record(call, index, workspace)
        if asked is None:
            if (trace := await self._of_web_request(call, workspace)) is not None:
                return trace
            raise self.results.missing(call, index)
        if asked.traceparent and not is_sampled(asked.traceparent):
            raise not_sampled(call, self.ratio)
        trace_id, root = spans.parse_traceparent(asked.traceparent)
        found = await self._read(trace_id)
        if (held := self.caller_spans.held(call)) is not None:
            found += expand(held)
        found = await self.owners.own(found, workspace)
        everything = with_own_rows(found, asked, trace_id, root)
        mine = of_input(everything, asked, root)
        path = path_of(mine, asked, root)
        return Trace(
            call=call,
            trace_id=trace_id,
            spans=tuple(sorted(mine, key=lambda span: (span.start_ns, -span.end_ns))),
            phases=tuple(PhaseInfo(p.name, p.start_ns, p.end_ns - p.start_ns) for p in path.pieces),
            wall_ns=path.wall_ns,
        )

    async def _of_web_request(self, call: str, workspace: str) -> Trace | None:
        """The trace of a web request that began with it: one within its client's trace is found by that one's id."""
        mine = [span for span in await self._read(trace_of(call)) if input_of(span)[0] == call]
        mine = await self.owners.own(mine, workspace)
        root = next((span for span in mine if span.name == spans.WEB_REQUEST), None)
        if root is None:
            return None
        intervals = [Interval(span.name, span.start_ns, span.end_ns) for span in mine]
        whole = Interval(root.name, root.start_ns, root.end_ns)
        path = critical_path(intervals, spans.CRITICAL_PHASES, spans.FILLING_PHASES, whole)
        return Trace(
            call=call,
            trace_id=root.trace_id,
            spans=tuple(sorted(mine, key=lambda span: (span.start_ns, -span.end_ns))),
            phases=tuple(PhaseInfo(p.name, p.start_ns, p.end_ns - p.start_ns) for p in path.pieces),
            wall_ns=path.wall_ns,
        )

    async def _read(self, trace_id: str) -> list[SpanInfo]:
        """Every span of a trace, each once: rows that travel with a call are published again by a second attempt."""
        region = self.bus.topology.region
        found: dict[str, SpanInfo] = {}
        await check_copy(self.bus, subjects.spans_stream(region), "spans")
        stored_batches = self.bus.read(subjects.spans_stream(region), subjects.spans(region, trace_id))
        async with closing(stored_batches) as batches:
            async for stored in batches:
                for span in spans_in(stored):
                    found.setdefault(span.span_id, span)
                if len(found) >= MAX_SPANS:
                    break
        return list(found.values())


def not_sampled(call: str, ratio: float) -> NotFoundError:
    """Why a call has no trace."""
    return NotFoundError(
        f"{call} has no trace: it is not among the calls of which spans are recorded "
        f"(the gateway's trace_ratio is {ratio:g}, and a call within another trace follows that one)",
        fix="Set SQUALL_GATEWAY_TRACE_RATIO=1 for the gateway, or sample the trace that the call is made in.",
    )


def spans_in(stored: Stored) -> list[SpanInfo]:
    """The spans of a stored batch; none of one that cannot be read."""
    try:
        return expand(SpanBatch.decode(stored.data))
    except (BadMessage, ValueError, TypeError) as error:
        log.warning("spans_not_understood", subject=stored.subject, reason=str(error))
        return []


def with_own_rows(found: list[SpanInfo], asked: CallRequested, trace_id: str, root: str) -> list[SpanInfo]:
    """Rows that travel with the call are published by its attempt; before there is one they are taken from the call."""
    this = (asked.call, asked.index)
    known = {span.name for span in found if input_of(span) == this}
    own = expand(SpanBatch(trace_id, root, asked.call, asked.index, "", asked.spans))
    return [*found, *(span for span in own if span.name not in known)]


def input_of(span: SpanInfo) -> tuple[object, object]:
    """The call and index that a span is about."""
    return span.attributes.get("call"), span.attributes.get("index")


def of_input(everything: Sequence[SpanInfo], asked: CallRequested, root: str) -> list[SpanInfo]:
    """The spans of one input, and of the calls that it made: what hangs below the caller's span, without the other
    inputs of the same call."""
    children: dict[str, list[SpanInfo]] = {}
    for span in everything:
        children.setdefault(span.parent_id, []).append(span)
    found = [span for span in everything if span.span_id == root]
    pending = list(children.get(root, ()))
    while pending:
        span = pending.pop()
        call, index = input_of(span)
        if call == asked.call and index != asked.index:
            continue
        found.append(span)
        pending += children.get(span.span_id, ())
    return found


def path_of(mine: Iterable[SpanInfo], asked: CallRequested, root: str) -> CriticalPath:
    """The critical path of one input; calls that it made are part of its user code."""
    this = (asked.call, asked.index)
    own = [span for span in mine if input_of(span) == this]
    intervals = [with_way(Interval(span.name, span.start_ns, span.end_ns), own) for span in own]
    # A spawn's caller is gone at once, and a map's waits for many: there the input's own phases are the whole.
    waited_for = asked.kind in (Kind.REMOTE.value, Kind.GENERATOR.value)
    caller = [Interval(span.name, span.start_ns, span.end_ns) for span in own if span.span_id == root]
    whole = caller[0] if caller and waited_for else None
    return critical_path(intervals, spans.CRITICAL_PHASES, spans.FILLING_PHASES, whole)


def with_way(interval: Interval, own: Sequence[SpanInfo]) -> Interval:
    """`result.return` as a phase: from the stored result to the caller's hands, the way to and from the gateway
    included; any other as it is."""
    if interval.name != spans.RESULT_RETURN:
        return interval
    stored = [span.end_ns for span in own if span.name == spans.RESULT_PUBLISH and span.end_ns <= interval.start_ns]
    taken = [span.start_ns for span in own if span.name == spans.RESULT_DECODE and span.start_ns >= interval.end_ns]
    return Interval(interval.name, max(stored, default=interval.start_ns), min(taken, default=interval.end_ns))
