"""Playing seeds: one here, or many in processes of their own. Owns nothing of the simulation itself."""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.simulation.mutations import mutated
from tests.simulation.world import World

ROOT = Path(__file__).parents[2]
REPLAY = "python -m tests.simulation --seed {seed} -v"
COLLECT_EVERY = 20
TRACED_EVENTS = 40


@dataclass(slots=True)
class Failure:
    """A seed that went wrong."""

    seed: int
    violations: list[str]
    trace: str

    def report(self) -> str:
        """For a person: what, the last events, and how to see it again."""
        return f"seed {self.seed}: {self.violations[0]}\n{self.trace}\nagain: {REPLAY.format(seed=self.seed)}"


@dataclass(slots=True)
class Found:
    """What came of many seeds."""

    seeds: int = 0
    failures: list[Failure] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """How often things happened that make the runs worth something."""
    cpu_s: float = 0.0

    def add(self, other: Found) -> None:
        self.seeds += other.seeds
        self.failures += other.failures
        self.counts = dict(Counter(self.counts) + Counter(other.counts))
        self.cpu_s += other.cpu_s


def settle_hashes() -> None:
    """The order of sets of strings must not depend on the process: start again with fixed hashes."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], environment)


def play(seed: int, mutation: str | None = None) -> tuple[World, float]:
    """One seed, and the seconds of CPU that it took."""
    began = time.process_time()
    logging.disable(logging.CRITICAL)  # formatting lines that nobody reads would be a third of the time
    with mutated(mutation):
        world = World(seed).run()
    return world, time.process_time() - began


def play_here(seeds: range, mutation: str | None, *, stop_at_first: bool = False) -> Found:
    """One after the other. What the runs leave behind is collected between them, never during one."""
    found = Found()
    sys.unraisablehook = lambda _: None  # coroutines of killed services are thrown away as they stand
    gc.collect()
    gc.freeze()
    gc.disable()
    for number, seed in enumerate(seeds):
        world, cpu_s = play(seed, mutation)
        found.seeds += 1
        found.cpu_s += cpu_s
        found.counts = dict(Counter(found.counts) + world.counts + world.server.counts)
        if world.violations:
            found.failures.append(Failure(seed, world.violations[:5], world.trace(TRACED_EVENTS)))
            if stop_at_first:
                break
        if number % COLLECT_EVERY == COLLECT_EVERY - 1:
            began = time.process_time()
            del world
            gc.collect()
            found.cpu_s += time.process_time() - began
    return found


def play_many(
    first: int, end: int, *, workers: int = 2, mutation: str | None = None, stop_at_first: bool = False
) -> Found:
    """A range of seeds in several processes, each with its share."""
    workers = max(1, min(workers, end - first))
    started = []
    for worker in range(workers):
        asked = {"seeds": [first + worker, end, workers], "mutation": mutation, "stop": stop_at_first}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.simulation.running", json.dumps(asked)],
                cwd=ROOT,
                env={**os.environ, "PYTHONHASHSEED": "0"},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    found = Found()
    try:
        for process in started:
            text, _ = process.communicate()
            if process.returncode:
                raise RuntimeError(f"a worker of the simulation ended with code {process.returncode}")
            found.add(_found(json.loads(text)))
    finally:
        for process in started:
            process.kill()
    found.failures.sort(key=lambda failure: failure.seed)
    return found


def _found(wire: dict[str, Any]) -> Found:
    return Found(**{**wire, "failures": [Failure(**failure) for failure in wire["failures"]]})


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    sys.stdout.write(
        json.dumps(asdict(play_here(range(*given["seeds"]), given["mutation"], stop_at_first=given["stop"])))
    )
