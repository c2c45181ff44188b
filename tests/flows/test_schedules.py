"""Schedules of a deployed app, through the commands: they tick, are paused, run now, and end with the app."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.flows.conftest import FORMS, PROGRAMS, nothing_was_forbidden
from tests.support.platform import Platform, eventually

import squall

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with FORMS["processes"]() as started:
        yield started
        nothing_was_forbidden(started)


def listed(platform: Platform) -> dict[str, dict[str, Any]]:
    rows = json.loads(platform.squall("schedule", "list", "--json").stdout)
    return {row["function"]: row for row in rows if row["app"] == "scheduled"}


def test_schedules_of_a_deployed_app(client: Platform, tmp_path: Path) -> None:
    client.squall("deploy", PROGRAMS / "scheduled.py")
    eventually(lambda: "often" in listed(client) and listed(client)["often"]["called"] >= 2, within_s=30)
    often, daily = listed(client)["often"], listed(client)["daily"]
    assert (often["when"], daily["when"]) == ("every 1 second", "0 6 * * * (Europe/Berlin)")
    assert daily["called"] == 0
    calls = [line["call"] for line in often["recent"] if line["call"]]
    assert squall.FunctionCall.from_id(calls[-1]).get(timeout=60) == "tick"

    assert "Paused often" in client.squall("schedule", "pause", "scheduled", "often").stdout
    paused = listed(client)["often"]
    assert "paused" in client.squall("schedule", "list").stdout
    ran = json.loads(client.squall("schedule", "run-now", "scheduled", "daily", "--json").stdout)
    assert squall.FunctionCall.from_id(ran["call"]).get(timeout=60) == "daily"
    assert listed(client)["often"]["called"] <= paused["called"] + 1, "one may have been on its way"
    before = listed(client)["often"]["called"]
    client.squall("schedule", "resume", "scheduled", "often")
    eventually(lambda: listed(client)["often"]["called"] > before, within_s=30)

    program = tmp_path / "scheduled.py"
    program.write_text((PROGRAMS / "scheduled.py").read_text().replace("schedule=squall.Period(seconds=1)", ""))
    client.squall("deploy", program)
    eventually(lambda: set(listed(client)) == {"daily"}, within_s=30)
    client.squall("app", "stop", "scheduled", "--yes")
    eventually(lambda: not listed(client), within_s=30)


@pytest.mark.parametrize("verb", ["run-now", "pause", "resume"])
def test_a_schedule_that_is_not_there_is_named(client: Platform, verb: str) -> None:
    refused = client.squall("schedule", verb, "nowhere", "f", check=False)
    assert refused.returncode == 1
    assert "Error [not_found]: " in refused.stderr
    assert "squall schedule list" in refused.stderr


def test_a_cron_that_cannot_be_read_is_not_deployed(client: Platform, tmp_path: Path) -> None:
    program = tmp_path / "bad.py"
    program.write_text((PROGRAMS / "scheduled.py").read_text().replace("0 6 * * *", "61 6 * * *"))
    refused = client.squall("deploy", program, check=False)
    assert refused.returncode == 1
    assert "'61 6 * * *' is not a cron expression" in refused.stderr
