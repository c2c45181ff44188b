"""Seeds: a few in every run, many in `scripts/test --all`. A failure prints its last events and the command."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.simulation.mutations import MUTATIONS
from tests.simulation.options import CROSSED
from tests.simulation.running import ROOT, Found, play_many

FEW = 50
MANY = 10_000
CAUGHT_WITHIN = 2000
CROSSED_MANY = 100
SEEN_AT = {"delivered_ones_expire": 70, "map_repeats": CROSSED}
"""Seeds from which on a bug that few of them show is looked for."""
RARE = frozenset(("busy_is_drained", "stopped_while_busy", "superseded_result_is_told"))
"""Bugs that at most three in 2,500 seeds show, and every change of the code moves which: for `--mutation` only.

`superseded_result_is_told` is nearly invisible to callers: whoever waits hears of the first record at once (`done.`),
or reads it within five seconds, so that the second reply finds nobody who still waits, unless both were lost. Crossed
runs have not shown it in 48 seeds either; tests/services/gpu_agent/test_attempts.py looks at the agent's own part."""
SOMETIMES = ("redelivered", "superseded", "abandoned", "takeover", "lost_reply", "requeued", "skipped", "counted_infra")
"""What must have happened somewhere, or the runs prove nothing."""


def assert_nothing_violated(found: Found) -> None:
    assert not found.failures, "\n\n".join(failure.report() for failure in found.failures[:3])


def test_nothing_is_violated_in_a_few_seeds() -> None:
    assert_nothing_violated(play_many(1, 1 + FEW))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_seed_is_the_same_run_in_another_process() -> None:
    seen = {told_of(seed=2) for _ in range(2)}
    assert len(seen) == 1


def told_of(seed: int) -> str:
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed), "-v"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True).stdout
    return told[: told.rindex("seed ")]  # the last line tells the time that it took


@pytest.mark.slow
@pytest.mark.timeout(2400)  # beside other tests it has only the time that these leave
def test_nothing_is_violated_in_many_seeds() -> None:
    found = play_many(1, 1 + MANY)
    assert_nothing_violated(found)
    assert [name for name in SOMETIMES if not found.counts.get(name)] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_violated_when_executions_cross() -> None:
    found = play_many(CROSSED, CROSSED + CROSSED_MANY)
    assert_nothing_violated(found)
    assert found.counts["superseded"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutation", sorted(MUTATIONS.keys() - RARE))
def test_a_bug_that_was_put_in_is_caught(mutation: str) -> None:
    first = SEEN_AT.get(mutation, 1)
    assert play_many(first, first + CAUGHT_WITHIN, mutation=mutation, stop_at_first=True).failures
