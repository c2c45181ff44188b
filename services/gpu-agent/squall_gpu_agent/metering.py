"""What an attempt leaves behind besides its result: its trace, its usage interval, its numbers. Never waited for."""

from __future__ import annotations

from squall.ids import is_sampled
from squall_contracts import subjects
from squall_contracts.calls import SpanVector
from squall_contracts.spans import (
    ATTEMPT,
    DISPATCH,
    QUEUE_WAIT,
    RESULT_PUBLISH,
    SpanBatch,
    parse_traceparent,
    row,
)
from squall_contracts.usage import UsageIntervals
from squall_gpu_agent.backend import End, Failed, Output
from squall_gpu_agent.containers import PooledContainer
from squall_gpu_agent.held import Held
from squall_gpu_agent.identity import Identity
from squall_gpu_agent.metrics import Metrics
from squall_gpu_agent.outbox import Outbox
from squall_service.clock import Clock

SERVICE = "gpu-agent"
RUNNER = "runner"
MAX_RUNNER_PHASES = 16
MAX_NS = 1 << 62
MAX_MORE = 63
"""A message of 64 attempts has about 40 KiB."""
MAX_OPEN_BATCHES = 1024


class Metering:
    """Publishes traces and usage of attempts."""

    def __init__(self, outbox: Outbox, identity: Identity, clock: Clock, metrics: Metrics) -> None:
        self._outbox = outbox
        self._identity = identity
        self._clock = clock
        self._metrics = metrics
        self._batches: dict[tuple[str, str], SpanBatch] = {}
        """Of the traces that wait in the outbox, by call and traceparent."""
        self._batches_of = 0
        self._usage: dict[str, tuple[UsageIntervals, list[list[object]]]] = {}

    def attempt_ended(self, held: Held, end: End) -> None:
        """An attempt is over and recorded (or given back)."""
        container = held.container
        if container is None:
            return
        outcome = _outcome(held, end)
        self._metrics.attempt_ended(outcome, (held.ended_ns - held.started_ns) / 1e9)
        if held.started_ns:
            self._use(held, container, outcome)
        if is_sampled(held.request.traceparent):
            self._trace(held, rows(held, end, container, self._identity.node))

    def _trace(self, held: Held, found: SpanVector) -> None:
        """Attempts of one call that end within a moment share a message: the inputs of a map do."""
        request = held.request
        if self._outbox.flushes != self._batches_of or len(self._batches) >= MAX_OPEN_BATCHES:
            self._batches_of, self._batches = self._outbox.flushes, {}
        batch = self._batches.get((request.call, request.traceparent))
        if batch is not None and len(batch.more) < MAX_MORE:
            batch.more.append([request.index, held.attempt, found])
            return
        trace_id, parent_id = parse_traceparent(request.traceparent)
        if trace_id:
            batch = SpanBatch(trace_id, parent_id, request.call, request.index, held.attempt, found)
            self._batches[request.call, request.traceparent] = batch
            self._outbox.put(subjects.spans(self._identity.region, trace_id), batch)

    def _use(self, held: Held, container: PooledContainer, outcome: str) -> None:
        function = container.function
        usage = self._usage.get(function.function_id)
        if usage is None:
            usage = self._usage[function.function_id] = (self._head(container), [])
        request = held.request
        ended_at = held.ended_ns / 1e9
        usage[1].append([request.call, request.index, held.attempt, container.id, held.started_at, ended_at, outcome])

    def _head(self, container: PooledContainer) -> UsageIntervals:
        function = container.function
        return UsageIntervals(
            function=function.function_id,
            app=function.app_id,
            workspace=function.workspace,
            node=self._identity.node,
            cpu=function.spec.resources.cpu,
            memory_mib=function.spec.resources.memory_mib,
            gpus=list(container.gpus),
        )

    def tick(self) -> None:
        """Publish usage; called every second."""
        usage, self._usage = self._usage, {}
        for function_id, (head, intervals) in usage.items():
            message = UsageIntervals(**{**head.__dict__, "intervals": intervals})
            self._outbox.put(subjects.usage(self._identity.region, function_id), message)


def rows(held: Held, end: End, container: PooledContainer, node: str) -> SpanVector:
    """The spans of one attempt; phases of the critical path follow each other without gaps."""
    first = not (held.totals.user + held.totals.infra)
    started, ended, delivered = _began_ns(held, end), held.ended_ns, held.delivered_ns
    found: SpanVector = [list(r) for r in held.request.spans] if first else []
    waiting_since = int(held.request.accepted_at * 1e9)
    found.append(row(QUEUE_WAIT, "", SERVICE, waiting_since if first else delivered, started))
    if held.cold:
        found += container.start_rows
    found.append(row(DISPATCH, "", SERVICE, max(container.ready_ns, delivered) if held.cold else delivered, started))
    about: dict[str, object] = {"attempt": held.number, "node": node, "container": container.id, "cold": held.cold}
    if not isinstance(end, Output):
        about["error"] = _outcome(held, end)
    found.append(row(ATTEMPT, "", SERVICE, started, ended, **about))
    if isinstance(end, Output | Failed):
        found += _runner_rows(end)
    if held.recorded_ns:
        found.append(row(RESULT_PUBLISH, "", SERVICE, ended, held.recorded_ns))
    return found


def _began_ns(held: Held, end: End) -> int:
    """When its code began. Of inputs that end within a moment we hear together; the runner knows better, if that can be
    true. Usage counts from when we knew."""
    if isinstance(end, Output | Failed) and end.spans and held.delivered_ns <= end.spans[0].start_ns:
        return min(held.started_ns, end.spans[0].start_ns)
    return held.started_ns


def _runner_rows(end: Output | Failed) -> SpanVector:
    """What the runner measured, as far as it can be true."""
    return [
        [phase.name[:64].replace(" ", "."), ATTEMPT, RUNNER, phase.start_ns, phase.duration_ns, {}]
        for phase in end.spans[:MAX_RUNNER_PHASES]
        if 0 <= phase.start_ns < MAX_NS and 0 <= phase.duration_ns < MAX_NS
    ]


def _outcome(held: Held, end: End) -> str:
    if isinstance(end, Output):
        return "succeeded"
    if held.timed_out:
        return "timed_out"
    if held.cancelled:
        return "cancelled"
    return end.kind.value if isinstance(end, Failed) else "lost"
