"""Fail points: off they do nothing; armed they act once, at the given time; a wrong one stops the start."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.eventually import eventually

from squall_service import failpoints
from squall_service.clock import SystemClock
from squall_service.failpoints import (
    POINTS,
    FailPointSettings,
    InjectedFault,
    enable,
    failpoint,
    failpoint_disk,
    failpoint_written,
)
from squall_service.settings import SettingsError

ROOT = Path(__file__).parents[3]
SERVICE = """
import asyncio, sys
from squall_service.failpoints import failpoint
from squall_service.run import run
from squall_service.settings import ServiceSettings

async def serve(context):
    context.ready()
    for step in range(3):
        print("step", step, flush=True)
        failpoint("agent.recorded")
    if "wait" in sys.argv:
        while not context.stopping.is_set():
            await asyncio.sleep(0.01)
            failpoint("agent.acked")

raise SystemExit(run("example", serve, ServiceSettings.load))
"""


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def settings(points: str) -> FailPointSettings:
    return FailPointSettings(failpoints=points)


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVICE, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_nothing_happens_at_a_step_that_is_not_armed() -> None:
    enable(settings("agent.acked=error"))

    failpoint("agent.recorded")


def test_an_armed_step_fails_once_and_at_its_turn() -> None:
    enable(settings("agent.recorded=error@3"))

    failpoint("agent.recorded")
    failpoint("agent.recorded")
    with pytest.raises(InjectedFault):
        failpoint("agent.recorded")
    failpoint("agent.recorded")


def test_what_follows_a_step_is_done_at_once_unless_it_is_armed() -> None:
    done: list[str] = []

    failpoint_written("agent.replied", lambda: done.append("acked"))

    assert done == ["acked"]


async def test_what_follows_an_armed_step_comes_after_it() -> None:
    done: list[str] = []
    enable(settings("agent.replied=delay:0"))

    failpoint_written("agent.replied", lambda: done.append("acked"))

    assert done == []
    await eventually(lambda: done == ["acked"])


def test_a_clock_jumps_forward_and_back_until_nothing_is_armed() -> None:
    clock, before = SystemClock(), time.time()

    failpoints.arm("clock=jump:1000")
    assert 1000 <= clock.now() - before < 1900
    failpoints.arm("clock=jump:-1000")
    assert -1900 < clock.now() - before <= -900
    failpoints.arm("")

    assert abs(clock.now() - time.time()) < 100


def test_a_full_disk_fails_every_write_until_there_is_room() -> None:
    failpoints.arm("disk=full; agent.recorded=kill")
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            failpoint_disk()

    failpoints.arm("")

    failpoint_disk()


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ("agent.recorde=kill", "did you mean agent.recorded?"),
        ("nowhere=kill", "there are gateway.admitted"),
        ("agent.recorded=explode", "unknown action 'explode'; there are kill, stop, delay, error"),
        ("agent.recorded", "STEP=ACTION"),
        ("agent.recorded=kill@0", "'0' is not a count"),
        ("agent.recorded=kill@", "'' is not a count"),
        ("agent.recorded=kill:3", "`delay` and `jump` take seconds"),
        ("agent.recorded=delay", "`delay` and `jump` take seconds"),
        ("agent.recorded=delay:soon", "'soon' is not a delay"),
        ("agent.recorded=delay:-1", "'-1' is not a delay"),
        ("agent.recorded=jump:3", "unknown action 'jump'; there are kill, stop, delay, error"),
        ("clock=kill", "unknown action 'kill'; there are jump"),
        ("clock=jump", "`delay` and `jump` take seconds"),
        ("clock=jump:nan", "'nan' is not a jump"),
        ("clock=jump:3@2", "'2' is not a count"),
        ("disk=jump:3", "unknown action 'jump'; there are full"),
    ],
)
def test_a_service_refuses_to_start_with_a_wrong_fail_point(points: str, says: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(says)):
        failpoints.parse(points)


@pytest.mark.slow
def test_the_refusal_is_the_end_of_the_process() -> None:
    child = start(SQUALL_TESTING_FAILPOINTS="agent.recorde=kill")

    out, err = child.communicate(timeout=20)

    assert child.returncode == 2
    assert "did you mean agent.recorded?" in err
    assert "step" not in out


@pytest.mark.slow
def test_a_service_kills_itself_at_the_step() -> None:
    child = start(SQUALL_TESTING_FAILPOINTS="agent.recorded=kill@2")

    out, err = child.communicate(timeout=20)

    assert child.returncode == -signal.SIGKILL
    assert out.split() == ["step", "0", "step", "1"]
    assert "failpoints_armed" in err, "nobody could see that they are on"


@pytest.mark.slow
def test_fail_points_reach_a_running_service_by_a_file_and_a_signal(tmp_path: Path) -> None:
    child = start("wait", SQUALL_TESTING_FAILPOINTS_DIR=str(tmp_path))
    assert child.stdout is not None
    assert child.stdout.readline()
    (tmp_path / str(child.pid)).write_text("agent.acked=kill")

    child.send_signal(signal.SIGUSR2)

    _, err = child.communicate(timeout=20)
    assert child.returncode == -signal.SIGKILL, err
    assert list(tmp_path.iterdir()) == []


def test_every_step_in_the_table_is_in_one_service_and_the_other_way_round() -> None:
    pattern = re.compile(r"failpoint(?:_written)?\(\"([a-z_.]+)\"")
    found = [name for file in (ROOT / "services").rglob("*.py") for name in pattern.findall(file.read_text())]

    assert set(found) == set(POINTS)
