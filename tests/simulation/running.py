"""Playing seeds: one here, or many in forks of a process of their own. Owns nothing of the simulation itself."""

from __future__ import annotations

import gc
import json
import logging
import os
import selectors
import subprocess
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.simulation.mutations import mutated
from tests.simulation.world import World

ROOT = Path(__file__).parents[2]
REPLAY = "python -m tests.simulation --seed {seed} -v"
BATCH = 50
"""Seeds of one process: they leave some MB each, which is thrown away with it."""
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
    sys.unraisablehook = lambda _: None  # coroutines of killed services are thrown away as they stand
    gc.disable()  # or they would be thrown away in the middle of the run, and say so
    logging.disable(logging.CRITICAL)  # formatting lines that nobody reads would be a third of the time
    with mutated(mutation):
        world = World(seed).run()
    return world, time.process_time() - began


def play_here(seeds: range, mutation: str | None, *, stop_at_first: bool = False) -> Found:
    """One after the other. What the runs leave behind is neither collected nor freed: the process ends soon."""
    found, played = Found(), []
    for seed in seeds:
        world, cpu_s = play(seed, mutation)
        played.append(world)
        found.seeds += 1
        found.cpu_s += cpu_s
        found.counts = dict(Counter(found.counts) + world.counts + world.server.counts)
        if world.violations:
            found.failures.append(Failure(seed, world.violations[:5], world.trace(TRACED_EVENTS)))
            if stop_at_first:
                break
    return found


def play_many(
    first: int, end: int, *, workers: int = 2, mutation: str | None = None, stop_at_first: bool = False
) -> Found:
    """A range of seeds, so many at once."""
    asked = {"first": first, "end": end, "workers": workers, "mutation": mutation, "stop_at_first": stop_at_first}
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation.running", json.dumps(asked)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = _found(json.loads(done.stdout))
    found.failures.sort(key=lambda failure: failure.seed)
    return found


# ---------------------------------------------------------------------- a process that forks


def conduct(first: int, end: int, *, workers: int, mutation: str | None, stop_at_first: bool) -> Found:
    """Plays a range in forks of this process: what all of them need is imported and built once."""
    play(first, None)
    gc.collect()
    gc.freeze()  # forks share it as long as nobody writes to it
    batches = deque(range(start, min(start + BATCH, end)) for start in range(first, end, BATCH))
    running: dict[int, int] = {}
    found, reading = Found(), selectors.DefaultSelector()
    while batches or running:
        while batches and len(running) < workers:
            pid, pipe = _forked(lambda: play_here(batches[0], mutation, stop_at_first=stop_at_first))
            running[pipe] = pid
            reading.register(pipe, selectors.EVENT_READ)
            batches.popleft()
        for key, _ in reading.select():
            pipe = int(key.fd)
            reading.unregister(pipe)
            found.add(_outcome(running.pop(pipe), pipe))
        if stop_at_first and found.failures:
            batches.clear()
    return found


def _forked(work: Callable[[], Found]) -> tuple[int, int]:
    """The process that does it, and where its answer comes from."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid:
        os.close(theirs)
        return pid, ours
    code = 1
    try:
        with os.fdopen(theirs, "w") as pipe:
            json.dump(asdict(work()), pipe)
        code = 0
    except BaseException:  # noqa: BLE001  # whatever it was, the parent must not go on twice
        traceback.print_exc()
    finally:
        os._exit(code)  # without the rest of the parent's life, and without taking a million objects apart


def _outcome(pid: int, pipe: int) -> Found:
    with os.fdopen(pipe) as answers:
        text = answers.read()
    _, status, used = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"a process of the simulation ended with status {status}")
    found = _found(json.loads(text))
    found.cpu_s = used.ru_utime + used.ru_stime
    return found


def _found(wire: dict[str, Any]) -> Found:
    return Found(**{**wire, "failures": [Failure(**failure) for failure in wire["failures"]]})


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(conduct(**json.loads(sys.argv[1])))))
