"""The spans of one build, in the trace of whoever asked for it: the base, each step that was made, the way to the
registry."""

from __future__ import annotations

from squall_bus import Bus
from squall_contracts import subjects
from squall_contracts.builds import BuildImage
from squall_contracts.calls import SpanVector
from squall_contracts.spans import (
    BUILD_BASE,
    BUILD_PULL,
    BUILD_PUSH,
    BUILD_STEP,
    IMAGE_BUILD,
    SpanBatch,
    checked_traceparent,
    parse_traceparent,
    row,
    span_id,
)

SERVICE = "builder"
NAMES = {"pull": BUILD_PULL, "base": BUILD_BASE, "step": BUILD_STEP, "push": BUILD_PUSH}


class BuildSpans:
    """Collects and sends them; nothing without a trace to belong to."""

    def __init__(self, command: BuildImage) -> None:
        self._command = command
        self._rows: SpanVector = []

    def add(self, kind: str, title: str, start_ns: int, end_ns: int) -> None:
        """One part of it has ended."""
        name = NAMES[kind]
        # Span ids come from names, and an image may have several steps.
        own = span_id(self._command.image, len(self._rows), str(self._command.requested_at), name)
        self._rows.append(row(name, IMAGE_BUILD, SERVICE, start_ns, end_ns, title=title, span_id=own))

    def send(self, bus: Bus, start_ns: int, end_ns: int) -> None:
        """Everything of the build."""
        command = self._command
        trace_id, parent_id = parse_traceparent(checked_traceparent(command.traceparent))
        if not trace_id:
            return
        rows = [row(IMAGE_BUILD, "", SERVICE, start_ns, end_ns, image=command.image), *self._rows]
        batch = SpanBatch(trace_id, parent_id, command.image, 0, str(command.requested_at), rows)
        bus.publish_soon(subjects.spans(bus.topology.region, trace_id), batch.encode())
