"""When a function runs by itself: `Cron` and `Period`, for `@app.function(schedule=...)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Union

from squall.declaration import is_number, is_whole
from squall.errors import InvalidError

if TYPE_CHECKING:
    from squall.spec import ScheduleSpec

FIELDS = "minute hour day-of-month month day-of-week"


class Cron:
    """At the times of a cron expression of five fields, by the clock of a time zone.

    `Cron("0 6 * * 1-5", timezone="Europe/Berlin")`: on working days at six in the morning there, summer and winter."""

    def __init__(self, cron_string: str, timezone: str = "UTC") -> None:
        _check_texts(cron_string, timezone)
        if len(cron_string.split()) != 5:
            raise InvalidError(f"a cron expression has five fields ({FIELDS}), got {cron_string!r}")
        self.cron_string, self.timezone = " ".join(cron_string.split()), timezone

    def spec(self) -> ScheduleSpec:
        """The form that the platform knows."""
        from squall.spec import ScheduleSpec

        return ScheduleSpec(cron=self.cron_string, timezone=self.timezone)

    def __repr__(self) -> str:
        return f"Cron({self.cron_string!r}, timezone={self.timezone!r})"


class Period:
    """Again and again after so long: `Period(hours=4)`. Months and years are those of the calendar, in UTC.

    It begins when the app is run or deployed; deploying it again with the same period does not begin anew."""

    def __init__(  # noqa: PLR0913 - the parts of a period
        self,
        *,
        years: int = 0,
        months: int = 0,
        weeks: int = 0,
        days: int = 0,
        hours: int = 0,
        minutes: int = 0,
        seconds: float = 0,
    ) -> None:
        whole = {"years": years, "months": months, "weeks": weeks, "days": days, "hours": hours, "minutes": minutes}
        for name, value in whole.items():
            if not is_whole(value):
                raise TypeError(f"Period({name}=) must be a whole number, got {value!r}")
        if not is_number(seconds):
            raise TypeError(f"Period(seconds=) must be a number, got {seconds!r}")
        self._parts: dict[str, Any] = {**whole, "seconds": float(seconds)}
        if min(self._parts.values()) < 0:
            raise InvalidError(f"{self!r}: no part of a period can be negative")
        if not any(whole.values()) and seconds < 1:
            raise InvalidError(f"{self!r}: a period must be one second or more")

    def spec(self) -> ScheduleSpec:
        """The form that the platform knows."""
        from squall.spec import ScheduleSpec

        return ScheduleSpec(**self._parts)

    def __repr__(self) -> str:
        return f"Period({', '.join(f'{name}={value:g}' for name, value in self._parts.items() if value)})"


def _check_texts(*values: Any) -> None:
    for value in values:
        if not isinstance(value, str) or not value:
            raise InvalidError(f"Cron takes an expression and the name of a time zone, got {value!r}")


Schedule = Union[Cron, Period]


def check(schedule: Any, function: str, raw: Any) -> None:
    """Raise `InvalidError` for what is no schedule, or for a function that cannot be called without arguments."""
    import inspect

    if not isinstance(schedule, (Cron, Period)):
        raise InvalidError(
            f"schedule= must be squall.Cron or squall.Period, got {type(schedule).__name__}",
            fix='Write schedule=squall.Cron("0 6 * * *") or squall.Period(hours=1).',
        )
    needed = [
        name
        for name, each in inspect.signature(raw).parameters.items()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    if needed:
        raise InvalidError(
            f"{function} has a schedule and needs {', '.join(needed)}: scheduled calls have no arguments",
            fix="Give its parameters defaults.",
        )
    if inspect.isgeneratorfunction(raw) or inspect.isasyncgenfunction(raw):
        raise InvalidError(f"{function} has a schedule and is a generator: nobody would take what it yields")
