"""Declared schedules: whether they mean anything, and how they are told to people. Pure."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from squall.errors import InvalidError
from squall.spec import FunctionSpec, ScheduleSpec

PARTS = ("years", "months", "weeks", "days", "hours", "minutes", "seconds")
LONGEST_YEARS = 100


def check_schedule(spec: FunctionSpec, now: float) -> None:
    """Refuse a schedule that has no ticks, or that the function cannot follow. Raises `InvalidError`."""
    if spec.schedule is None:
        return
    try:
        _check_cron(spec.schedule, now) if spec.schedule.cron else _check_period(spec.schedule)
    except InvalidError as error:
        raise InvalidError(f"function {spec.name!r}: {error.message}", fix=error.hint) from None
    if spec.is_class or any(method.is_generator for method in spec.methods):
        raise InvalidError(f"function {spec.name!r}: classes and generators cannot have a schedule")


def _check_cron(schedule: ScheduleSpec, now: float) -> None:
    try:
        zone = ZoneInfo(schedule.timezone)
    except (KeyError, ValueError, OSError):
        raise InvalidError(
            f"there is no time zone {schedule.timezone!r}", fix="Use a name such as UTC or Europe/Berlin."
        ) from None
    try:
        if len(schedule.cron.split()) != 5:
            raise CronSimError("it does not have five fields")
        ticks = CronSim(schedule.cron, datetime.fromtimestamp(now, zone))
    except CronSimError as error:
        raise InvalidError(
            f"{schedule.cron!r} is not a cron expression: {error}",
            fix="Write five fields: minute hour day-of-month month day-of-week, as in '0 6 * * 1-5'.",
        ) from None
    if next(ticks, None) is None:
        raise InvalidError(f"{schedule.cron!r} never comes", fix="Choose a day that is in some month.")


def _check_period(schedule: ScheduleSpec) -> None:
    values = {part: getattr(schedule, part) for part in PARTS}
    if min(values.values()) < 0 or (not any(values[part] for part in PARTS[:-1]) and schedule.seconds < 1):
        raise InvalidError("a period must be one second or more, without negative parts")
    days = 366 * schedule.years + 31 * schedule.months + 7 * schedule.weeks + schedule.days
    if days + (schedule.hours + schedule.minutes / 60 + schedule.seconds / 3600) / 24 > 366 * LONGEST_YEARS:
        raise InvalidError(f"a period can be {LONGEST_YEARS} years at most")


def in_words(schedule: ScheduleSpec) -> str:
    """`0 6 * * * (Europe/Berlin)`, or `every 1 hour 30 minutes`."""
    if schedule.cron:
        return f"{schedule.cron} ({schedule.timezone})"
    values = [(getattr(schedule, part), part) for part in PARTS]
    return "every " + " ".join(f"{value:g} {part[:-1] if value == 1 else part}" for value, part in values if value)
