"""The gateway's spans of a call: whether there are any, where they belong, and what they measure."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from squall.ids import in_sample, is_sampled
from squall_contracts import spans
from squall_contracts.calls import SpanVector
from squall_contracts.spans import SpanBatch
from squall_gateway.call_headers import CallHeaders
from squall_service.clock import Clock

SERVICE = "gateway"
MAX_SENT_AGE_NS = 60_000_000_000
"""An older time of sending is another clock, not a slow network."""


class CallTrace(NamedTuple):
    """Where the spans of a call belong."""

    trace_id: str
    parent_id: str
    """The caller's span `call`."""
    sampled: bool
    """Whether there are any: decided where the trace began, the same for everybody in it."""

    @property
    def header(self) -> str:
        """As it travels on."""
        return spans.traceparent(self.trace_id, self.parent_id, self.sampled)


class Accepted(NamedTuple):
    """The journal has it."""

    duplicate: bool
    """It had it before: whoever asked first has the reply."""
    trace: CallTrace
    times_ns: tuple[int, int, int]
    """When accepting began, when the journal write began, and when it ended."""

    def batch(self, call: str, rows: SpanVector) -> SpanBatch:
        """What accepting took, and more rows of the gateway's."""
        began, writing, ended = self.times_ns
        accepting = [
            spans.row(spans.GATEWAY_ACCEPT, "", SERVICE, began, ended),
            spans.row(spans.JOURNAL_PUBLISH, spans.GATEWAY_ACCEPT, SERVICE, writing, ended),
        ]
        return SpanBatch(self.trace.trace_id, self.trace.parent_id, call, 0, "", [*accepting, *rows])


def trace_of(call: CallHeaders, ratio: float) -> CallTrace:
    """What the caller says. Where it says nothing the trace begins here: its id is made from the call's, and `ratio` of
    all such calls are sampled."""
    trace_id, parent_id = spans.parse_traceparent(call.traceparent)
    if trace_id:
        return CallTrace(trace_id, parent_id, is_sampled(call.traceparent))
    trace_id = hashlib.sha256(call.call.encode()).hexdigest()[:32]
    return CallTrace(trace_id, spans.span_id(call.call, 0, "", spans.CALL), in_sample(trace_id, ratio))


def accepting_since(call: CallHeaders, received_ns: int) -> int:
    """When `gateway.accept` begins. The way here belongs to it: since the caller had encoded its arguments, if our
    clocks agree."""
    if call.sent_ns is None or not 0 <= received_ns - call.sent_ns[1] <= MAX_SENT_AGE_NS:
        return received_ns
    return call.sent_ns[1]


def encode_rows(call: CallHeaders) -> SpanVector:
    """What the caller measured before it sent the call."""
    if call.sent_ns is None:
        return []
    return [spans.row(spans.ARGS_ENCODE, "", "sdk", *call.sent_ns)]


def now_ns(clock: Clock) -> int:
    """Wall clock in nanoseconds, as spans want it."""
    return int(clock.now() * 1e9)
