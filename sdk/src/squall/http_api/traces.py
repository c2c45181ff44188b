"""Bodies about what a call left behind: log lines and spans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LogEntry:
    """One JSON line of GET /v1/apps/{id}/logs and of POST /v1/images answers. `text` keeps carriage returns."""

    at: float
    stream: str
    """"stdout", "stderr" or "system"."""
    text: str
    app: str = ""
    function: str = ""
    container: str = ""
    call: str = ""
    index: int = -1
    cursor: str = ""


@dataclass(frozen=True)
class SpanInfo:
    """One span of GET /v1/calls/{id}/trace. Times are nanoseconds since 1970."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    links: tuple[str, ...] = ()


@dataclass(frozen=True)
class PhaseInfo:
    """One phase on a call's critical path; phases do not overlap, `other` is what no phase covers."""

    name: str
    start_ns: int
    duration_ns: int


@dataclass(frozen=True)
class Trace:
    """GET /v1/calls/{id}/trace."""

    call: str
    trace_id: str
    spans: tuple[SpanInfo, ...]
    phases: tuple[PhaseInfo, ...]
    wall_ns: int
