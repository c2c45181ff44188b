"""Cron and Period in the SDK: what they tell the server, and what is refused before anything is asked."""

from __future__ import annotations

from typing import Any

import pytest
from tests.sdk.fake_gateway import FakeGateway

import squall
from squall import exception, publish, session
from squall.spec import ScheduleSpec


def plain(x: int = 1) -> None:
    """Does nothing."""


def test_what_the_server_is_told(gateway: FakeGateway, connected: session.Session) -> None:
    app = squall.App()
    app.function(name="cron", schedule=squall.Cron(" 0  6 * * 1-5 ", timezone="Europe/Berlin"))(plain)
    app.function(name="period", schedule=squall.Period(hours=1, seconds=2.5))(plain)
    app.function(name="none")(plain)

    publish.publish(app, connected, "ephemeral", "x", "main")

    told = {spec["name"]: spec["schedule"] for spec in gateway.apps[-1]["functions"]}
    assert told["none"] is None
    assert ScheduleSpec(**told["cron"]) == ScheduleSpec(cron="0 6 * * 1-5", timezone="Europe/Berlin")
    assert ScheduleSpec(**told["period"]) == ScheduleSpec(hours=1, seconds=2.5)


def needs(x: int) -> None:
    """Has a parameter without a default."""


def yields() -> Any:
    """Is a generator."""
    yield 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: squall.Cron("* * * *"), "five fields"),
        (lambda: squall.Cron("* * * * * *"), "five fields"),
        (lambda: squall.Cron(5), "got 5"),  # type: ignore[arg-type]
        (lambda: squall.Cron("* * * * *", timezone=""), "time zone"),
        (squall.Period, "one second or more"),
        (lambda: squall.Period(seconds=0.5), "one second or more"),
        (lambda: squall.Period(hours=-1), "negative"),
        (lambda: squall.Period(hours=1.5), "hours=.*whole"),  # type: ignore[arg-type]
        (lambda: squall.Period(seconds="1"), "seconds="),  # type: ignore[arg-type]
        (lambda: squall.App().function(schedule="* * * * *")(plain), "squall.Cron or squall.Period"),  # type: ignore[arg-type]
        (lambda: squall.App().function(schedule=squall.Period(days=1))(needs), "needs x"),
        (lambda: squall.App().function(schedule=squall.Period(days=1))(yields), "generator"),
        (lambda: squall.App().cls(schedule=squall.Period(days=1)), "schedule"),
    ],
)
def test_what_is_no_schedule_is_refused(make: Any, words: str) -> None:
    with pytest.raises((exception.InvalidError, TypeError), match=words):
        make()
