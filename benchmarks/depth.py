"""Depth: what an enqueue costs at a short and at a long queue, the gateway's memory, and the exact end of all of it.

    .venv/bin/python benchmarks/depth.py                    1,000 and 1,000,000 queued (takes some minutes)
    .venv/bin/python benchmarks/depth.py --deep 100000

The long queue is measured twice: right after it was filled, and when the services have done what they do with it.
Nothing runs the inputs: the function's only container is busy. At the end everything is cancelled in bulk; the count
must be that of the accepted inputs, and every one of a sample must be recorded as cancelled.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import squall
from squall.cli.cancel import Counts, follow

if squall.is_local():  # a container has this file alone
    from calls import commit, durability, machine, percentile
    from hops import platform

app = squall.App("bench-depth")
SHALLOW = 1_000
SAMPLES = 300
STEP = 50_000
CHECKED = 200
REST_LIMIT_S = 90.0
RESTING_CORES = 0.15
RESIDENT = ("gateway", "scheduler", "bus")


@app.function(max_containers=1)
def hold(value: int) -> int:
    time.sleep(3600)
    return value


def resident_mib(pid: int) -> float:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


def cpu_s(pid: int) -> float:
    """Seconds of CPU of a process so far."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Depth:
    """The queue, and what was measured at its depths."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self.accepted = 0
        self.samples: list[squall.FunctionCall] = []
        self.last: squall.FunctionCall | None = None

    @contextmanager
    def told(self, what: str) -> Iterator[None]:
        """Print what the block took, in seconds and in CPU of each process."""
        before, began = {name: cpu_s(pid) for name, pid in self._pids.items()}, time.perf_counter()
        own = time.process_time()
        yield
        took = {name: cpu_s(pid) - before[name] for name, pid in self._pids.items()}
        told = ", ".join(f"{name} {took_s:.1f}" for name, took_s in sorted(took.items(), key=lambda each: -each[1]))
        took_s = time.perf_counter() - began
        print(f"{what}: {took_s:.1f} s; CPU: {told}, this program {time.process_time() - own:.1f}", flush=True)

    def fill(self, depth: int) -> None:
        """Enqueue in bulk up to a depth."""
        while self.accepted < depth:
            count = min(STEP, depth - self.accepted)
            self.last = hold.experimental_spawn_map(range(count))
            self.accepted += count

    def rest(self) -> None:
        """Until the services have noted what was accepted: the scheduler reads it some seconds later."""
        until = time.monotonic() + REST_LIMIT_S
        with self.told("until the services rest"):
            while time.monotonic() < until:
                before_s = sum(map(cpu_s, self._pids.values()))
                time.sleep(1.0)
                if sum(map(cpu_s, self._pids.values())) - before_s < RESTING_CORES:
                    return

    def measure(self) -> None:
        """Single enqueues at the present depth."""
        depth, took = self.accepted, []
        with self.told(f"{SAMPLES} spawns"):
            for number in range(SAMPLES):
                began = time.perf_counter()
                self.samples.append(hold.spawn(number))
                took.append((time.perf_counter() - began) * 1000)
        self.accepted += SAMPLES
        memory = ", ".join(f"{name} {resident_mib(self._pids[name]):.0f} MiB" for name in RESIDENT)
        print(f"| {depth:,} | {percentile(took, 0.5):.2f} ms | {percentile(took, 0.99):.2f} ms | {memory} |")

    def cancel(self) -> Counts:
        """Cancel everything."""
        client = hold._origin.target().client
        return follow(client, {"app": app.app_id, "terminate_containers": True})

    def check(self) -> None:
        """Each of a sample has ended as cancelled."""
        assert self.last is not None
        waited = [(call, 0) for call in self.samples[:CHECKED]] + [(self.last, index) for index in range(CHECKED)]
        for call, index in waited:
            try:
                call.get(timeout=0, index=index)
            except squall.exception.CallCancelledError:
                continue
            raise SystemExit(f"{call.object_id}[{index}] was not cancelled")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deep", type=int, default=999_000, help="inputs queued in the end (the limit is a million)")
    wanted = parser.parse_args()
    with platform(("--processes",)) as server, app.run():
        print(f"{commit()}, {machine()}; services as processes; durability: {durability()}\n")
        pids = {str(part["name"]): int(part["pid"]) for part in server.processes}
        depth = Depth(pids)
        print("| queued | spawn p50 | spawn p99 | resident |\n|---|---|---|---|")
        depth.fill(SHALLOW)
        depth.measure()
        before = depth.accepted
        with depth.told(f"spawn_map of {wanted.deep - before:,} inputs"):
            depth.fill(wanted.deep)
        depth.measure()
        depth.rest()
        depth.measure()
        with depth.told("bulk cancel"):
            counts = depth.cancel()
        print(f"{counts.cancelled:,} cancelled, {counts.ended:,} had ended")
        if counts.cancelled + counts.ended != depth.accepted or not counts.exact:
            raise SystemExit(f"{depth.accepted:,} were accepted: the count is wrong")
        depth.check()
    return 0


if __name__ == "__main__":
    sys.exit(main())
