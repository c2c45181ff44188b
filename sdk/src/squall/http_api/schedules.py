"""Bodies about schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ScheduleInfo:
    """One row of GET /v1/schedules."""

    id: str
    app: str
    app_id: str
    function: str
    environment: str
    when: str
    """`0 6 * * * (Europe/Berlin)`, or `every 1 hour 30 minutes`."""
    next_tick: float
    """Unix seconds; 0 = there is none."""
    paused: bool
    called: int
    """Ticks that were called since it was declared so."""
    missed: int
    recent: tuple[dict[str, Any], ...] = ()
    """{tick, decided_at, call} of the last ones, newest first; without a call it was missed."""


@dataclass(frozen=True)
class RanSchedule:
    """Answer of POST /v1/schedules/{schedule}/run."""

    schedule: str
    call: str
