"""The harness proves itself: with a seeded bug in the services its checkers name the invariant that is broken, within
20 seconds of play; without the bug the same scenario is clean. The bugs are in tests/chaos/bugs, the table of them in
docs/explanation/fault-injection.md."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL, SIGSTOP

import pytest
from tests.chaos.stage import BUGS, Scenario, Stage, stage
from tests.support.failpoints import gone
from tests.support.platform import Platform, eventually

import squall
from squall_bus import connect
from squall_contracts import topology
from squall_contracts.nodes import CONTAINERS, ClaimState, ContainerClaim
from squall_verify.faults import REGISTRY
from squall_verify.invariants import INVARIANTS
from squall_verify.invariants.verdict import State, Verdict, judge

ROOT = Path(__file__).parents[2]
# Callers' connections belong to threads that end with the caller.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


Play = Callable[[Callable[[Scenario], None], str], dict[str, Verdict]]
"""A scenario and the name of the bug in it, or "" for none, to verdicts by invariant."""


@pytest.fixture(scope="module")
def shared_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("stage")) as ready:
        yield ready


@pytest.fixture
def play(shared_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Plays a scenario; the verdicts."""
    for name in ("SQUALL_SERVER_URL", "SQUALL_TOKEN", "SQUALL_HOME"):
        monkeypatch.setenv(name, shared_stage.platform.client_environment()[name])

    def verdicts(scenario: Callable[[Scenario], None], bug: str) -> dict[str, Verdict]:
        evidence = shared_stage.play(scenario, bug)
        return {each.name: judge(each, evidence) for each in INVARIANTS}

    return verdicts


# ---------------------------------------------------------------------- scenarios


def steady(scene: Scenario) -> None:
    """Two calls of several seconds."""
    scene.begin("steady", s=7.5)
    scene.begin("steady", s=7.5)
    scene.wait()


def dies_after_the_record(scene: Scenario) -> None:
    op = scene.begin("spawn", s=1.0)
    [start] = scene.await_executions(op, 1)
    scene.dies_at("agent.recorded", scene.agent_of(start))
    scene.wait()
    scene.settle()


def stale_in_the_middle(scene: Scenario) -> None:
    """An agent stands still past its leases. The code that it runs raises, and then it goes on; another one runs the
    call meanwhile, for some seconds more."""
    op = scene.begin("spawn", s=8.5, bad=[0])
    [start] = scene.await_executions(op, 1)
    with scene.paused(scene.agent_of(start), 8.7):
        scene.await_executions(op, 2)
        scene.await_executions(op, 1, "raise")
        pause(0.5)  # its container has told the agent, who does not listen
    scene.wait(12.0)


def stale_success(scene: Scenario) -> None:
    """An agent stands still past its leases while its code succeeds, and goes on when another one has succeeded too."""
    op = scene.begin("spawn", s=1.0)
    [start] = scene.await_executions(op, 1)
    with scene.paused(scene.agent_of(start), 8.0):
        scene.await_executions(op, 2, "end")
        scene.wait()
    pause(1.0)


def always_raises(scene: Scenario) -> None:
    scene.begin("retry", failures=6)
    scene.wait()


def kills_its_containers(scene: Scenario) -> None:
    began = time.time()
    call = squall.Function.from_name("dying", "die").spawn({"op": scene.logs.name})
    scene.until(lambda: ended(call) or len(scene.executions(scene.logs.name)) > 10, 18.0)
    scene.hurt("kill-runner", "its own code", began)
    call.cancel()


def ended(call: squall.FunctionCall) -> bool:
    try:
        call.get(timeout=0)
    except TimeoutError:
        return False
    except squall.Error:
        return True
    return True


def over_its_time(scene: Scenario) -> None:
    scene.begin("timeout", s=6.0)
    scene.wait()


def cancelled_while_it_runs(scene: Scenario) -> None:
    op = scene.begin("cancel", s=8.0, after_s=1.0)
    scene.wait()
    scene.until(lambda: scene.executions(op, "tick")[-1].at < time.time() - 1.0, 9.0)


def too_late(scene: Scenario) -> None:
    scene.begin("remote")
    scene.wait()
    scene.inject(REGISTRY["late-call"].inject, {"which": 0.9999})
    scene.settle(8.0)


def large_result_of_a_dying_agent(scene: Scenario) -> None:
    agents = scene.stage.platform.parts_named("gpu-agent")
    scene.stage.points.arm("agent.recorded=kill", *agents)
    began = time.time()
    scene.begin("bulky", bytes=200_000)
    victim = eventually(lambda: [agent for agent in agents if gone(agent)], within_s=20)[0]
    scene.stage.points.arm("", *(agent for agent in agents if agent != victim))
    scene.hurt("kill-agent", victim.name, began)
    scene.wait(12.0)


def container_taken_away(scene: Scenario) -> None:
    op = scene.begin("steady", s=4.0)
    scene.await_executions(op, 1)
    asyncio.run(drain_everything(scene.stage.platform))
    scene.wait()
    pause(1.5)  # usage is told once a second


async def drain_everything(platform: Platform) -> None:
    """What the scheduler writes when a container is no longer needed."""
    async with connect(platform.bus_settings(), topology.build()) as bus:
        claims = bus.kv(CONTAINERS)
        for entry in await claims.entries():
            claim = ContainerClaim.decode(entry.value)
            if claim.state == ClaimState.READY:
                await claims.update(entry.key, replace(claim, state=ClaimState.DRAINING).encode(), entry.revision)


def one_map(scene: Scenario) -> None:
    scene.begin("map", n=8)
    scene.wait()


def same_request_twice(scene: Scenario) -> None:
    scene.begin("twice")
    scene.wait()


def many_wait(scene: Scenario) -> None:
    for _ in range(6):
        scene.begin("remote", s=0.3)
    scene.wait()


def one_container_only(scene: Scenario) -> None:
    for _ in range(4):
        scene.begin("narrow", s=1.3)
    scene.wait()


def bus_dies_under_writes(scene: Scenario) -> None:
    """It stops reading, and is killed with what lies in its socket."""
    began = time.time()
    scene.begin("forget")
    scene.wait()
    bus = scene.stage.platform.signal("bus", SIGSTOP)
    for _ in range(10):
        scene.begin("forget")
    pause(0.5)
    os.kill(bus.pid, SIGKILL)
    scene.hurt("kill-bus", "bus", began)
    scene.wait()
    scene.settle(8.0)


def shared_keys(scene: Scenario) -> None:
    """Six programs put, claim, offer and pop the same few keys."""
    together(scene, "dict", n=25, group=0)


def shared_queue(scene: Scenario) -> None:
    together(scene, "queue", n=20, group=0)


def together(scene: Scenario, form: str, **given: object) -> None:
    for dice in range(6):
        scene.begin(form, dice=dice, **given)
    scene.wait()
    scene.begin("final")
    scene.wait()


def some_ticks(scene: Scenario) -> None:
    scene.tick(for_s=4.5)
    scene.settle(8.0)


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


SEEDED: dict[str, tuple[Callable[[Scenario], None], str]] = {
    "map-out-of-order": (one_map, "I17"),
    "new-id-for-a-repeat": (same_request_twice, "I14"),
    "anybodys-reply": (many_wait, "I3"),
    "too-many-containers": (one_container_only, "I43"),
    "expired-run-anyway": (too_late, "I11"),
    "retries-not-counted": (always_raises, "I8"),
    "no-attempt-cap": (kills_its_containers, "I8"),
    "timeout-ignored": (over_its_time, "I10"),
    "cancel-ignored": (cancelled_while_it_runs, "I12"),
    "kill-while-busy": (container_taken_away, "I48"),
    "ack-before-record": (steady, "I6"),
    "no-history-read": (dies_after_the_record, "I4b"),
    "stale-failure": (stale_in_the_middle, "I5"),
    "stale-ack": (stale_in_the_middle, "I6"),
    "unconditional-write": (stale_success, "I3"),
    "blob-after-record": (large_result_of_a_dying_agent, "I19"),
    "drop-on-reconnect": (bus_dies_under_writes, "I1"),
    "claim-anyway": (shared_keys, "D2"),
    "pop-without-revision": (shared_keys, "D3"),
    "take-without-front": (shared_queue, "Q1"),
    "tick-without-id": (some_ticks, "I27"),
}
"""Bug to the scenario in which it shows, and the invariant that names it."""


def violated(verdicts: dict[str, Verdict]) -> dict[str, tuple[object, ...]]:
    return {name: found.violations for name, found in verdicts.items() if found.state is State.VIOLATED}


@pytest.mark.parametrize("scenario", dict.fromkeys(scenario for scenario, _ in SEEDED.values()))
def test_the_scenario_is_clean_without_a_bug(scenario: Callable[[Scenario], None], play: Play) -> None:
    assert violated(play(scenario, "")) == {}


@pytest.mark.parametrize("bug", SEEDED)
def test_the_bug_is_caught(bug: str, play: Play) -> None:
    scenario, invariant = SEEDED[bug]

    # A slow machine may miss the moment in which the bug shows, once.
    found = violated(play(scenario, bug))
    if invariant not in found:
        found = violated(play(scenario, bug))
    assert invariant in found, f"{bug} was not caught by {invariant}: {found}"


def test_every_bug_has_its_scenario_and_its_row_in_the_docs() -> None:
    listed = subprocess.run(
        [sys.executable, BUGS / "seeded_bugs.py"], capture_output=True, text=True, check=True, timeout=20
    ).stdout
    table = (ROOT / "docs" / "explanation" / "fault-injection.md").read_text()

    assert {line.split()[0] for line in listed.splitlines()} == set(SEEDED)
    for bug, (_, invariant) in SEEDED.items():
        assert any(f"`{bug}`" in row and f"| {invariant} |" in row for row in table.splitlines()), bug


def test_seeded_bugs_are_refused_outside_the_harness(tmp_path: Path) -> None:
    (tmp_path / "harness").write_text("1")
    child = subprocess.run(
        [sys.executable, "-c", "print('ran')"],
        env={**os.environ, "PYTHONPATH": str(BUGS), "SEEDED_BUGS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )

    assert child.returncode != 0
    assert "seeded bugs are for tests/chaos/test_seeded_bugs.py" in child.stderr
    assert "ran" not in child.stdout
