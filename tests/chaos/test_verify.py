"""`squall verify` with four short seeds: everything holds under kills, pauses and garbage, and the faults have bitten.

A longer run, or another seed, is one command: see docs/reliability.md.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.support.platform import SQUALL

SEEDS = (1, 2, 3, 4)
SECONDS = 25
RUN_S = 400.0
MUST_BE_MET = {
    *("redelivery", "superseded result", "agent loss", "nats restart", "tick while something was hurt"),
    *("claim lost to another", "item got by another"),
}
NEVER_EXERCISED = {"I13"}
"""Nothing is preempted yet."""
BOXED = 4 if os.geteuid() == 0 else None
"""The seed whose containers are sandboxes."""
BOXED_FAULTS = "kill-agent,kill-runner,pause-agent,kill-gateway"
SELDOM = {"I7"} if BOXED else {"I7", "S1"}
"""Nothing may ever have dropped out of a queue."""


class Runs:
    """What the seeds have shown so far."""

    def __init__(self) -> None:
        self.met: Counter[str] = Counter()
        self.exercised: set[str] = set()
        self.known: set[str] = set()
        self.done: list[int] = []


@pytest.fixture(scope="module")
def runs() -> Runs:
    return Runs()


def verified(seed: int, folder: Path) -> dict[str, Any]:
    """The report of a run in which everything held."""
    command = [SQUALL, "verify", "--seed", seed, "--seconds", SECONDS, "--json", "--keep", folder / "evidence"]
    command += ["--backend", "sandbox", "--faults", BOXED_FAULTS] if seed == BOXED else []
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=RUN_S, check=False)
    told = folder / "evidence" / "report.txt"
    assert done.returncode == 0, f"{done.stderr}\n{told.read_text() if told.exists() else done.stdout}"
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.timeout(RUN_S + 20)
@pytest.mark.parametrize("seed", SEEDS)
def test_everything_holds(seed: int, runs: Runs, tmp_path: Path) -> None:
    report = verified(seed, tmp_path)

    assert report["holds"]
    assert report["counts"]["lost"] == 0
    assert report["counts"]["inputs acknowledged"] == report["counts"]["recorded"] > 0
    runs.met.update({name: times for name, times in report["sometimes"].items() if times})
    runs.known |= {verdict["name"] for verdict in report["invariants"]}
    runs.exercised |= {verdict["name"] for verdict in report["invariants"] if verdict["checked"]}
    runs.done.append(seed)


def test_the_faults_have_bitten(runs: Runs) -> None:
    if len(runs.done) < len(SEEDS):
        pytest.skip("needs every seed of this module")
    assert set(runs.met) >= MUST_BE_MET
    assert runs.known - runs.exercised <= NEVER_EXERCISED | SELDOM


@pytest.mark.timeout(RUN_S + 20)
def test_every_call_of_a_mixed_load_is_accounted_for(tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    command = [SQUALL, "verify", "--seed", 1, "--seconds", 30, "--load", "mixed", "--json", "--keep", folder]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=RUN_S, check=False)
    told = (folder / "report.txt").read_text() if (folder / "report.txt").exists() else done.stdout
    assert done.returncode == 0, f"{done.stderr}\n{told}"
    report = json.loads(done.stdout)

    assert report["skipped"] == []
    assert [what.split()[0] for what in report["operator"]] == [
        "autoscaler",
        "autoscaler",
        "deploy",
        "rollback",
        "node",
    ]
    assert {fault["name"] for fault in report["faults"]} - {"stall"} == {"kill-agent", "drain-node"}
    assert sum(form["inputs"] for form in report["forms"].values()) == report["counts"]["inputs acknowledged"]
    assert report["counts"]["lost"] == 0
    assert "queue.wait" in told.partition("Slowest call")[2]
