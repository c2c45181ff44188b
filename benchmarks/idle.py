"""What a platform costs that does nothing: CPU and memory of every process.

scripts/bench idle                 services as processes, as `squall up --processes`
scripts/bench idle --tasks         all services in one process
scripts/bench idle --seconds 60
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import defaultdict
from pathlib import Path

from calls import commit, durability, machine
from hops import Processes, platform

SETTLE_S = 5.0
"""After the start: byte-code, first lists, leases."""


def memory_mib(pid: int) -> tuple[float, float]:
    """Resident memory, and the process's share of it where pages are shared."""
    found = re.findall(r"^(?:Rss|Pss):\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    resident, share = (int(kib) / 1024 for kib in found[:2])
    return resident, share


def measure(processes: Processes, seconds: float) -> None:
    before, began = processes.cpu_us(), time.monotonic()
    time.sleep(seconds)
    after, took_s = processes.cpu_us(), time.monotonic() - began
    used: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for (name, pid), cpu_us in after.items():
        if name == "caller":
            continue
        row, memory = used[name], memory_mib(pid)
        row[0] += (cpu_us - before.get((name, pid), 0.0)) / 1e6 / took_s
        row[1] += memory[0]
        row[2] += memory[1]
    rows = sorted(used.items(), key=lambda item: -item[1][0])
    rows.append(("all", [sum(row[place] for row in used.values()) for place in range(3)]))
    print("| process | CPU, % of one core | CPU s per minute | RSS MiB | PSS MiB |\n|---|---|---|---|---|")
    for name, (cores, resident, share) in rows:
        print(f"| {name} | {100 * cores:.2f} | {60 * cores:.2f} | {resident:.0f} | {share:.0f} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tasks", action="store_true", help="all services in one process")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to look")
    given = parser.parse_args()
    with platform(() if given.tasks else ("--processes",)) as server:
        form = "one process and nats-server" if given.tasks else "services as processes"
        print(f"{commit()}, {machine()}; {form}; durability: {durability()}; {given.seconds:.0f} s\n")
        time.sleep(SETTLE_S)
        measure(Processes(server), given.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
