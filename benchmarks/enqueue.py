"""What bulk and single enqueue cost: rate, and CPU microseconds per input in each process. Nothing runs the inputs.

.venv/bin/python benchmarks/enqueue.py                 20,000 inputs by spawn_map, 2,000 by spawn
.venv/bin/python benchmarks/enqueue.py --inputs 100000
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import squall

if squall.is_local():  # a container has this file alone
    from calls import commit, durability, machine
    from hops import CpuTable, Processes, platform

app = squall.App("bench-enqueue")
ROUNDS = 3
THREADS = 16
BEFORE = 2_000


@app.function(max_containers=1)
def hold(value: int) -> int:
    time.sleep(3600)
    return value


def spawn_many(count: int) -> None:
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(hold.spawn, range(count)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    wanted = parser.parse_args()
    with platform(("--processes",)) as server, app.run():
        print(f"{commit()}, {machine()}; services as processes; durability: {durability()}\n")
        table = CpuTable(Processes(server))
        hold.spawn_map(range(BEFORE))
        for number in range(ROUNDS):
            table.measure(f"spawn_map {number}", wanted.inputs, lambda: hold.spawn_map(range(wanted.inputs)))
        table.measure(f"spawn, {THREADS} threads", BEFORE, lambda: spawn_many(BEFORE))
        table.print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
