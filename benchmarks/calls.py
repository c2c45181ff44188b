"""What calls cost, from the caller's side: warm, mapped, spawned and cold. One caller, nothing else on the machine.

    scripts/bench calls                                    a temporary platform in one process, as `squall run` makes
    .venv/bin/python benchmarks/calls.py --processes       each service as its own process
    .venv/bin/python benchmarks/calls.py --only warm,map   some of the measurements
With SQUALL_SERVER_URL set it measures that server. Prints one Markdown row per figure for benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import squall

app = squall.App("bench-calls")

WARM_UP = 200
WARM_CALLS = 2000
MAP_INPUTS = 5000
MAP_ROUNDS = 3
SPAWNS = 2000
SPAWN_THREADS = 16
COLD_CALLS = 30


@app.function(min_containers=1)
def noop(value: object = None) -> object:
    return value


@app.function()
def noop_mapped(value: object = None) -> object:
    return value


@app.function()
def noop_spawned(value: object = None) -> object:
    return value


@app.cls(scaledown_window=2)
class Forked:
    """Each `pool` is a pool of its own, so its first call starts a container: a fork of the template."""

    pool: int = squall.parameter(default=0)

    @squall.method()
    def noop(self) -> int:
        return self.pool


def percentile(values: list[float], part: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part * len(ordered)))]


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def row(what: str, figure: str, detail: str) -> None:
    print(f"| {what} | {figure} | {detail} |", flush=True)


def measure_warm() -> None:
    for _ in range(WARM_UP):
        noop.remote()
    took = [timed(lambda: noop.remote(1)) * 1000 for _ in range(WARM_CALLS)]
    row(
        "warm `remote()`, sequential",
        f"p50 {percentile(took, 0.5):.2f} ms, p99 {percentile(took, 0.99):.2f} ms",
        f"{WARM_CALLS} calls after {WARM_UP}; min {min(took):.2f}, max {max(took):.2f} ms",
    )


def measure_map() -> None:
    list(noop_mapped.map(range(200)))
    rates = []
    for _ in range(MAP_ROUNDS):
        results: list[object] = []
        rates.append(MAP_INPUTS / timed(lambda into=results: into.extend(noop_mapped.map(range(MAP_INPUTS)))))  # type: ignore[misc]
        if results != list(range(MAP_INPUTS)):
            raise SystemExit("map lost, repeated or reordered a result")
    row(
        f"`map` of {MAP_INPUTS} no-ops",
        f"{statistics.median(rates):.0f} inputs/s",
        f"median of {MAP_ROUNDS} rounds, {min(rates):.0f} to {max(rates):.0f}; results checked, in order",
    )


def measure_spawn() -> None:
    noop_spawned.remote()
    calls: list[object] = []
    one = SPAWNS / timed(lambda: calls.extend(noop_spawned.spawn(i) for i in range(SPAWNS)))
    squall.FunctionCall.gather(*calls)
    with ThreadPoolExecutor(SPAWN_THREADS) as threads:
        calls = []
        many = SPAWNS / timed(lambda: calls.extend(threads.map(noop_spawned.spawn, range(SPAWNS))))
        squall.FunctionCall.gather(*calls)
    row("`spawn`, one after the other", f"{one:.0f} calls/s", f"{SPAWNS} calls, each acknowledged before the next")
    row(f"`spawn`, {SPAWN_THREADS} threads", f"{many:.0f} calls/s", f"{SPAWNS} calls")


def measure_cold() -> None:
    """Fresh pools only: a pool that has had a container may still have one."""
    first = timed(Forked(pool=-1).noop.remote) * 1000
    forked = [timed(lambda i=i: Forked(pool=i).noop.remote()) * 1000 for i in range(COLD_CALLS)]  # type: ignore[misc]
    row("cold `remote()`, first of its function", f"{first:.0f} ms", "makes the template too")
    cold_row("cold `remote()`, template present", forked)


def cold_row(what: str, took: list[float]) -> None:
    row(
        what,
        f"p50 {percentile(took, 0.5):.0f} ms, p99 {percentile(took, 0.99):.0f} ms",
        f"{len(took)} fresh pools, one after the other; min {min(took):.0f} ms",
    )


MEASUREMENTS = {"warm": measure_warm, "map": measure_map, "spawn": measure_spawn, "cold": measure_cold}


def machine() -> str:
    """One line about what it ran on."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores of {cpu}, {memory_gib:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def commit() -> str:
    """The tree that was measured."""
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return answer.stdout.strip() or "unknown commit"


@contextmanager
def server(arguments: tuple[str, ...]) -> Iterator[str]:
    """The configured server, else a temporary one; yields what kind it is."""
    if os.environ.get("SQUALL_SERVER_URL"):
        yield "a running server"
        return
    from squall import local

    with local.start_ephemeral(arguments) as started:
        os.environ.update(SQUALL_SERVER_URL=started.url, SQUALL_TOKEN=started.token)
        yield "services as processes" if "--processes" in arguments else "one process and nats-server"


def durability() -> str:
    """What the server says that an acknowledged call survives."""
    import json
    import urllib.request

    request = urllib.request.Request(
        os.environ["SQUALL_SERVER_URL"] + "/v1/info",
        headers={"Authorization": f"Bearer {os.environ['SQUALL_TOKEN']}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["durability"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--processes", action="store_true", help="each service as its own process")
    parser.add_argument("--only", default=",".join(MEASUREMENTS), help="names, separated by commas")
    given = parser.parse_args()
    with server(("--processes",) if given.processes else ()) as form:
        today = datetime.datetime.now(datetime.UTC).date()
        print(f"{today}, {commit()}, {machine()}; {form}; durability: {durability()}\n")
        print("| what | figure | detail |\n|---|---|---|")
        with app.run():
            for name in given.only.split(","):
                MEASUREMENTS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
