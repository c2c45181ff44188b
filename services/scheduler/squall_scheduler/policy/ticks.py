"""Ticks: which moments of a schedule are due, which of them is called, which were missed. Pure.

The law is docs/howto/schedules.md: the latest tick that is due is called if it is at most five minutes late; all others
are missed; a tick is decided once, whatever clocks do.
"""

from __future__ import annotations

import calendar
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count, islice, takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim

from squall.spec import ScheduleSpec

LATE_S = 300.0
"""A tick that is later than this is missed."""
MOST_MISSED = 1000
"""About as many are counted, after however long an absence."""
NEVER = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What is to be done about a schedule now."""

    call: float | None
    """The tick to call; None if there is none, or if it is too late for it."""
    missed: tuple[float, ...]
    """Older ones, which nobody called; and the latest, if it is too late."""
    handled: float
    """The last tick that is decided with this."""
    next_tick: float
    """When to look again; 0 = there is no further tick."""


def due(spec: ScheduleSpec, since: float, handled: float, now: float) -> Due:
    """Decide on the ticks after `handled` and until `now`."""
    ticks = list(islice(_until(now, after(spec, since, handled)), MOST_MISSED))
    if len(ticks) == MOST_MISSED:
        ticks += list(_until(now, after(spec, since, max(ticks[-1], _shortly_before(spec, now)))))
    latest = ticks[-1] if ticks else handled
    on_time = bool(ticks) and now - latest <= LATE_S
    return Due(
        call=latest if on_time else None,
        missed=tuple(ticks[:-1] if on_time else ticks),
        handled=latest,
        next_tick=next(after(spec, since, latest), NEVER),
    )


def _until(now: float, ticks: Iterator[float]) -> Iterator[float]:
    return takewhile(lambda tick: tick <= now, ticks)


def _shortly_before(spec: ScheduleSpec, now: float) -> float:
    """A moment after which the latest tick is, and few others."""
    if spec.cron:
        found = next(CronSim(spec.cron, _zoned(spec, now + 1.0), reverse=True), None)
        return (found.timestamp() if found else now) - 0.5
    return now - 2 * _length_s(spec)


def after(spec: ScheduleSpec, since: float, moment: float) -> Iterator[float]:
    """The schedule's ticks after a moment, in order."""
    return _of_cron(spec, moment) if spec.cron else _of_period(spec, since, moment)


def _of_cron(spec: ScheduleSpec, moment: float) -> Iterator[float]:
    # It begins with the first whole second after the one that it is given.
    for found in CronSim(spec.cron, _zoned(spec, moment)):
        tick = found.timestamp()
        if tick > moment:
            yield tick


def _zoned(spec: ScheduleSpec, moment: float) -> datetime:
    return datetime.fromtimestamp(moment, ZoneInfo(spec.timezone))


def _of_period(spec: ScheduleSpec, since: float, moment: float) -> Iterator[float]:
    """Counted from the beginning, so that the 31st is not lost after a month without one, and nothing adds up."""
    start = datetime.fromtimestamp(since, UTC)
    months = 12 * spec.years + spec.months
    rest_s = _rest_s(spec)
    # Calendars are never two periods ahead of their average.
    for number in count(max(1, math.floor((moment - since) / _length_s(spec)) - 2)):
        base = _months_later(start, months * number).timestamp() if months else since
        tick = round(base + rest_s * number, 3)
        if tick > moment:
            yield tick


def _rest_s(spec: ScheduleSpec) -> float:
    """The parts of a period that are always as long."""
    whole = timedelta(weeks=spec.weeks, days=spec.days, hours=spec.hours, minutes=spec.minutes)
    return whole.total_seconds() + spec.seconds


def _length_s(spec: ScheduleSpec) -> float:
    """About how long a period is."""
    return _rest_s(spec) + (12 * spec.years + spec.months) * 30.436875 * 86400.0


def _months_later(start: datetime, months: int) -> datetime:
    years, month = divmod(start.year * 12 + start.month - 1 + months, 12)
    day = min(start.day, calendar.monthrange(years, month + 1)[1])
    return start.replace(year=years, month=month + 1, day=day)
