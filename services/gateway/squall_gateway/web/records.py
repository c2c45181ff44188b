"""What remains of web requests: a line in the log of their app, and a trace. Nothing of it is waited for.

Owns the traceparent of a request and the limits: what is stored goes out twice a second, in one message for each pool,
and beyond the limits only counts do.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from squall.ids import in_sample, is_sampled
from squall_bus import Bus
from squall_contracts import spans, subjects
from squall_contracts.functions import FunctionRecord
from squall_contracts.logs import LogLines
from squall_contracts.spans import SpanBatch, checked_traceparent, parse_traceparent, row
from squall_gateway.web.upstream import Upstream

SERVICE = "gateway"
CALL_TOKEN = "web"
"""In the subject, where lines of a call have its id."""
NO_CALL = "-"
MAX_LINES = 200
"""Of a pool in one message; more are counted."""
TRACES_PER_S, MAX_TRACES = 20.0, 40.0
"""Stored by one gateway. A stored trace costs the bus as much as a call's, and anybody may send requests."""
MAX_PATH = 200


@dataclass(slots=True, eq=False)
class Asked:
    """One web request, as far as its record is concerned."""

    function: FunctionRecord
    call: str
    scope: MutableMapping[str, Any]
    headers: dict[bytes, bytes]
    traceparent: str
    """For the container: our span is the parent of what it does."""
    trace_id: str
    parent_id: str
    """Of the client's trace, if it has one."""
    began_ns: int
    granted_ns: int = 0
    container: str = ""
    pool: str = ""

    def granted(self, pool: str, upstream: Upstream) -> None:
        """A container has it."""
        self.granted_ns = time.time_ns() - round(upstream.granted_ago_s * 1e9)
        self.pool, self.container = pool, upstream.container


@dataclass(slots=True)
class _Lines:
    """Of one pool since the last message."""

    function: FunctionRecord
    lines: list[list[object]] = field(default_factory=list)
    more: Counter[int] = field(default_factory=Counter)
    """Requests without a line, by status."""


class WebRecords:
    """Writes them."""

    def __init__(self, bus: Bus, trace_ratio: float) -> None:
        self._bus = bus
        self._trace_ratio = trace_ratio
        self._pending: dict[tuple[str, str], _Lines] = {}
        self._traces_left, self._at = MAX_TRACES, 0.0

    def begin(
        self, function: FunctionRecord, call: str, scope: MutableMapping[str, Any], headers: dict[bytes, bytes]
    ) -> Asked:
        """A request has come."""
        given = checked_traceparent(headers.get(b"traceparent", b"").decode("latin-1"))
        if given:
            (trace_id, parent_id), sampled = parse_traceparent(given), is_sampled(given)
        else:
            trace_id, parent_id = trace_of(call), ""
            sampled = in_sample(trace_id, self._trace_ratio)
        own = spans.traceparent(trace_id, spans.span_id(call, 0, "", spans.WEB_REQUEST), sampled)
        return Asked(function, call, scope, headers, own, trace_id, parent_id, time.time_ns())

    def end(self, asked: Asked, status: int) -> None:
        """It is over; status 0: its client has left before an answer began."""
        now_ns = time.time_ns()
        ms, method = (now_ns - asked.began_ns) / 1e6, asked.scope.get("method", "WEBSOCKET")
        key = (asked.function.function_id, asked.pool)
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = _Lines(asked.function)
        if len(pending.lines) < MAX_LINES:
            path = asked.scope["path"][:MAX_PATH].encode("unicode_escape").decode()
            text = f"{method} {path.replace(' ', '%20')} {status or '-'} {ms:.1f} ms {asked.call}\n"
            pending.lines.append([now_ns / 1e9, "system", text])
        else:
            pending.more[status] += 1
        if is_sampled(asked.traceparent) and self._may_trace(now_ns / 1e9):
            self._store_trace(asked, status, method, now_ns)

    def _may_trace(self, now: float) -> bool:
        self._traces_left = min(MAX_TRACES, self._traces_left + (now - self._at) * TRACES_PER_S)
        self._at = now
        if self._traces_left < 1:
            return False
        self._traces_left -= 1
        return True

    def _store_trace(self, asked: Asked, status: int, method: str, now_ns: int) -> None:
        function = asked.function
        about: dict[str, Any] = {
            "app": function.app_name, "function": function.spec.name, "function_id": function.function_id,
            "method": method, "path": asked.scope["path"][:MAX_PATH], "status": status, "container": asked.container,
        }  # fmt: skip
        if status >= 500:
            about["error"] = f"HTTP {status}"
        granted_ns = asked.granted_ns or now_ns
        rows = [
            row(spans.WEB_REQUEST, "", SERVICE, asked.began_ns, now_ns, **about),
            row(spans.WEB_WAIT, spans.WEB_REQUEST, SERVICE, asked.began_ns, granted_ns),
        ]
        if asked.granted_ns:
            rows.append(row(spans.WEB_ANSWER, spans.WEB_REQUEST, SERVICE, granted_ns, now_ns))
        batch = SpanBatch(asked.trace_id, asked.parent_id, asked.call, 0, "", rows)
        self._bus.publish_soon(subjects.spans(self._bus.topology.region, asked.trace_id), batch.encode())

    def tick(self) -> None:
        """Send what there is."""
        pending, self._pending = self._pending, {}
        topology = self._bus.topology
        for (function_id, pool), about in pending.items():
            function, lines = about.function, about.lines
            if about.more:
                told = ", ".join(f"{number} x {status or 'left'}" for status, number in sorted(about.more.items()))
                lines.append([lines[-1][0], "system", f"and {about.more.total()} requests more: {told}\n"])
            message = LogLines(
                app=function.app_id, pool=pool, function=function_id, container="", call=NO_CALL, index=-1, lines=lines
            )
            shard = subjects.shard_of_name(function.app_id, topology.shards)
            subject = subjects.log(topology.region, shard, function.app_id, pool or NO_CALL, CALL_TOKEN)
            self._bus.publish_soon(subject, message.encode())


def trace_of(call: str) -> str:
    """The trace id of a request whose client has no trace."""
    return hashlib.sha256(call.encode()).hexdigest()[:32]
