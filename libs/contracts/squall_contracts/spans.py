"""Spans on the bus: compact rows that travel with a call, and the one way to turn them into spans.

A hop does not export spans; it appends rows (about 1 us each). Span ids are derived from what the row is about, so any
service, and user code in a container, can name a span as its parent before it is written.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from squall.http_api.traces import SpanInfo
from squall_contracts.calls import SpanVector
from squall_contracts.envelope import HotMessage

# Names of spans. Children of `call` unless a parent is said; phases of the critical path are marked *.
CALL = "call"  # SDK: the caller's line of code
ARGS_ENCODE = "args.encode"  # * SDK
GATEWAY_ACCEPT = "gateway.accept"  # * gateway, until the journal has it; of a map's chunk until the write begins
JOURNAL_PUBLISH = "journal.publish"  # * gateway, child of gateway.accept
QUEUE_WAIT = (
    "queue.wait"  # agent: accepted -> handed to an attempt; on the critical path only where nothing below covers it
)
AUTOSCALER_DECIDE = "autoscaler.decide"  # * from the arrival to the stored decision
SCHEDULER_PLACE = "scheduler.place"  # * from the stored decision to the stored claim
CONTAINER_START = "container.start"  # agent: from the stored claim to ready; parent of the next ten
AGENT_ACCEPT = "agent.accept"  # *
CODE_FETCH = "code.fetch"  # *
IMAGE_ENSURE = "image.ensure"  # *
IMAGE_PULL = "image.pull"  # * in place of image.ensure, where something of it had to be brought to the machine
SANDBOX_CREATE = "sandbox.create"  # * template fork or process spawn
RUNNER_CONNECT = "runner.connect"  # *
CODE_IMPORT = "code.import"  # *
ENTER_SNAP = "enter.snap"  # * @enter(snap=True), in the template where there is one
ENTER = "enter"  # *
WEB_OPEN = "web.open"  # * the web functions of it: apps made, lifespans begun, ports answering
DISPATCH = "dispatch"  # * agent: container ready (or input delivered, whichever is later) -> input handed to the runner
ATTEMPT = "attempt"  # agent: handed to the runner -> outcome known; attributes carry cold, node, container
USER_CODE = "user.code"  # * runner, child of attempt
RESULT_PUBLISH = "result.publish"  # * agent
RESULT_RETURN = "result.return"  # * gateway: reply received -> answer written; as a phase with the way there and back
RESULT_DECODE = "result.decode"  # * SDK
WEB_REQUEST = "web.request"  # gateway: a web request, from its head to the end of its answer; may be the root
WEB_WAIT = "web.wait"  # * gateway: until a container has it
WEB_ANSWER = "web.answer"  # * gateway: from there to the end of the answer
IMAGE_BUILD = "image.build"  # builder, child of the request to build; parent of the next four
BUILD_BASE, BUILD_STEP = "image.base", "image.step"
BUILD_PULL, BUILD_PUSH = "image.take", "image.push"  # from and to the registry

CRITICAL_PHASES = frozenset(
    (
        ARGS_ENCODE, GATEWAY_ACCEPT, JOURNAL_PUBLISH, AUTOSCALER_DECIDE, SCHEDULER_PLACE, AGENT_ACCEPT, CODE_FETCH,
        IMAGE_ENSURE, IMAGE_PULL, SANDBOX_CREATE, RUNNER_CONNECT, CODE_IMPORT, ENTER_SNAP, ENTER, DISPATCH, USER_CODE,
        RESULT_PUBLISH, RESULT_RETURN, RESULT_DECODE, WEB_WAIT, WEB_ANSWER,
    )
)  # fmt: skip
"""The names marked * above."""
FILLING_PHASES = frozenset((QUEUE_WAIT, ATTEMPT))
"""On the critical path only where no other phase is: what of an attempt is not user code is the way to the runner and
back."""


_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True)
class SpanBatch(HotMessage):
    """Rows of one attempt (or of the caller's side). Subject `spans.r.<trace id>`.

    `rows`: [name, parent name ("" = the span in `parent_id`), service, start ns, duration ns, attributes]. An attribute
    `error` marks the span as failed."""

    TYPE: ClassVar[str] = "span_batch"

    trace_id: str
    parent_id: str
    call: str
    index: int
    attempt: str
    rows: SpanVector = field(default_factory=list)
    more: list[list[Any]] = field(default_factory=list)
    """Further attempts of the same call that ended at about the same time: [index, attempt, rows] each."""


def row(name: str, parent: str, service: str, start_ns: int, end_ns: int, **attributes: Any) -> list[Any]:
    """One row of a `SpanBatch`."""
    return [name, parent, service, start_ns, end_ns - start_ns if end_ns > start_ns else 0, attributes]


def checked_traceparent(header: str) -> str:
    """`header` itself if it is a W3C traceparent; empty otherwise, for a broken one is to be ignored."""
    return header if _TRACEPARENT.fullmatch(header) else ""


def parse_traceparent(header: str) -> tuple[str, str]:
    """(trace id, span id) of a W3C traceparent header; ("", "") when it is missing or malformed."""
    parts = header.split("-")
    if len(parts) < 4 or len(parts[1]) != 32 or len(parts[2]) != 16:
        return "", ""
    return parts[1], parts[2]


def traceparent(trace_id: str, span_id: str, sampled: bool = True) -> str:
    """The W3C header for a span."""
    return f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"


def span_id(call: str, index: int, attempt: str, name: str) -> str:
    """16 hex digits that identify a span of an attempt everywhere."""
    return hashlib.sha256(f"{call}/{index}/{attempt}/{name}".encode()).hexdigest()[:16]


def expand(batch: SpanBatch) -> list[SpanInfo]:
    """The spans of a batch, in the order of its rows."""
    attempts = [(batch.index, batch.attempt, batch.rows), *batch.more]
    return [span for index, attempt, rows in attempts for span in _expand(batch, index, attempt, rows)]


def _expand(batch: SpanBatch, index: int, attempt: str, rows: SpanVector) -> list[SpanInfo]:
    def identify(name: str) -> str:
        return span_id(batch.call, index, attempt, name) if name else batch.parent_id

    spans = []
    for name, parent, service, start_ns, duration_ns, attributes in rows:
        own = {"call": batch.call, "index": index, **attributes}
        error = str(own.pop("error", ""))
        links = tuple(own.pop("links", ()))
        own_id = str(own.pop("span_id", "")) or identify(name)
        spans.append(
            SpanInfo(
                trace_id=batch.trace_id,
                span_id=own_id,
                parent_id=identify(parent) if own_id != batch.parent_id else str(own.pop("parent_span_id", "")),
                name=name,
                service=service,
                start_ns=start_ns,
                end_ns=start_ns + duration_ns,
                attributes=own,
                error=error,
                links=links,
            )
        )
    return spans
