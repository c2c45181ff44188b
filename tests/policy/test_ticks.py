"""Ticks of cron expressions and periods: which are called, which were missed, and what clocks may do meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squall.spec import ScheduleSpec
from squall_scheduler.policy.ticks import LATE_S, MOST_MISSED, Due, after, due

BERLIN = "Europe/Berlin"
HOURLY = ScheduleSpec(cron="0 * * * *")
EVERY_10_S = ScheduleSpec(seconds=10.0)


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def shown(spec: ScheduleSpec, since: float, number: int, zone: str = "UTC") -> list[str]:
    ticks = islice(after(spec, since, since), number)
    return [datetime.fromtimestamp(tick, ZoneInfo(zone)).strftime("%m-%d %H:%M %z") for tick in ticks]


@pytest.mark.parametrize(
    ("spec", "since", "expected"),
    [
        (ScheduleSpec(cron="30 6 * * 1-5"), "2026-11-20T12:00", ["11-23 06:30", "11-24 06:30", "11-25 06:30"]),
        (ScheduleSpec(cron="*/20 9 1 * *"), "2026-11-20T12:00", ["12-01 09:00", "12-01 09:20", "12-01 09:40"]),
        (ScheduleSpec(cron="0 0 29 2 *"), "2026-11-20T12:00", ["02-29 00:00", "02-29 00:00", "02-29 00:00"]),
        (ScheduleSpec(months=1), "2026-10-31T08:00", ["11-30 08:00", "12-31 08:00", "01-31 08:00"]),
        (ScheduleSpec(months=1, days=1), "2026-01-30T08:00", ["03-01 08:00", "04-01 08:00", "05-03 08:00"]),
        (ScheduleSpec(years=1), "2028-02-29T00:00", ["02-28 00:00", "02-28 00:00", "02-28 00:00"]),
        (ScheduleSpec(weeks=1, hours=2), "2026-11-20T12:00", ["11-27 14:00", "12-04 16:00", "12-11 18:00"]),
    ],
)
def test_ticks_follow_the_calendar(spec: ScheduleSpec, since: str, expected: list[str]) -> None:
    assert shown(spec, at(since), 3) == [f"{each} +0000" for each in expected]


@pytest.mark.parametrize(
    ("cron", "since", "expected"),
    [
        # 29 March 2026: there is no time from 2:00 to 3:00. What was to be then is at the next instant, once.
        ("30 2 * * *", "2026-03-28T12:00", ["03-29 03:00 +0200", "03-30 02:30 +0200"]),
        ("0 3 * * *", "2026-03-28T12:00", ["03-29 03:00 +0200", "03-30 03:00 +0200"]),
        # 25 October 2026: the time from 2:00 to 3:00 is there twice. What is to be then is once.
        ("30 2 * * *", "2026-10-24T12:00", ["10-25 02:30 +0200", "10-26 02:30 +0100"]),
        # What is to be every half an hour is, whatever clocks show.
        ("*/30 * * * *", "2026-10-25T02:15", ["10-25 02:30 +0200", "10-25 02:00 +0100", "10-25 02:30 +0100"]),
        ("*/30 * * * *", "2026-03-29T01:15", ["03-29 01:30 +0100", "03-29 03:00 +0200", "03-29 03:30 +0200"]),
    ],
)
def test_a_local_time_that_is_skipped_or_repeated_is_called_once(cron: str, since: str, expected: list[str]) -> None:
    spec = ScheduleSpec(cron=cron, timezone=BERLIN)
    assert shown(spec, at(since, BERLIN), len(expected), BERLIN) == expected


def test_nothing_is_due_before_its_time() -> None:
    start = at("2026-11-20T12:30")
    assert due(HOURLY, start, start, at("2026-11-20T12:59:59")) == Due(
        call=None, missed=(), handled=start, next_tick=at("2026-11-20T13:00")
    )


def test_the_latest_tick_is_called_and_older_ones_were_missed() -> None:
    start = at("2026-11-20T12:30")
    decided = due(HOURLY, start, start, at("2026-11-20T16:04"))

    assert decided.call == at("2026-11-20T16:00")
    assert decided.missed == tuple(at(f"2026-11-20T{hour}:00") for hour in (13, 14, 15))
    assert decided.next_tick == at("2026-11-20T17:00")


def test_a_tick_that_is_more_than_five_minutes_late_is_missed() -> None:
    start, tick = at("2026-11-20T12:30"), at("2026-11-20T13:00")

    assert due(HOURLY, start, start, tick + LATE_S).call == tick
    decided = due(HOURLY, start, start, tick + LATE_S + 0.1)
    assert (decided.call, decided.missed, decided.handled) == (None, (tick,), tick)


def test_a_clock_that_is_put_back_repeats_nothing() -> None:
    start = at("2026-11-20T12:30")
    first = due(HOURLY, start, start, at("2026-11-20T15:00:01"))
    back = due(HOURLY, start, first.handled, at("2026-11-20T13:59"))

    assert first.call == at("2026-11-20T15:00")
    assert (back.call, back.missed, back.handled) == (None, (), first.handled)
    assert back.next_tick == at("2026-11-20T16:00")


@pytest.mark.parametrize("spec", [EVERY_10_S, ScheduleSpec(cron="* * * * *")])
def test_after_a_long_absence_one_is_called_and_the_count_is_bounded(spec: ScheduleSpec) -> None:
    start = at("2020-01-01T00:00")
    now = at("2026-11-20T16:00:03")
    decided = due(spec, start, start, now)

    assert decided.call == at("2026-11-20T16:00")
    assert MOST_MISSED <= len(decided.missed) <= MOST_MISSED + 3
    assert decided.next_tick > now


SPECS = st.one_of(
    st.builds(
        ScheduleSpec,
        months=st.integers(0, 30),
        weeks=st.integers(0, 5),
        days=st.integers(0, 40),
        minutes=st.integers(0, 100),
        seconds=st.floats(1, 10_000).map(lambda s: round(s, 2)),
    ),
    st.sampled_from(
        [ScheduleSpec(cron=cron, timezone=zone)
         for cron in ("*/7 * * * *", "0 2 * * *", "30 2 * * 0", "15 0,12 1,15 * *")
         for zone in ("UTC", BERLIN, "America/New_York", "Asia/Kolkata")]
    ),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(SPECS, st.integers(0, 40_000_000), st.lists(st.integers(-4000, 400_000), min_size=1, max_size=12))
def test_however_the_clock_runs_no_tick_is_decided_twice_and_none_is_early(
    spec: ScheduleSpec, start: int, steps: list[int]
) -> None:
    since = datetime(2026, 1, 1, tzinfo=UTC).timestamp() + start
    handled = now = since
    decided: list[float] = []
    for step in steps:
        now += step
        told = due(spec, since, handled, now)
        new = [*told.missed, *([told.call] if told.call is not None else [])]
        assert new == sorted(set(new))
        assert all(handled < tick <= now for tick in new)
        assert told.handled == (new[-1] if new else handled)
        assert told.next_tick > max(told.handled, since)
        decided += new
        handled = told.handled
    assert decided == sorted(set(decided))
    if len(decided) < MOST_MISSED:
        latest = decided[-1] if decided else since
        assert decided == [tick for tick in islice(after(spec, since, since), len(decided) + 1) if tick <= latest]
