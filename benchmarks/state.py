"""Dicts and queues from one client: operations per second, and the CPU of each process for one.

.venv/bin/python benchmarks/state.py
.venv/bin/python benchmarks/state.py --threads 32 --operations 4000
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from calls import commit, durability, machine
from hops import Processes, platform

import squall

VALUE = b"x" * 100


def measured(processes: Processes, name: str, operations: int, work: Callable[[], object]) -> None:
    """One row: how fast, and who worked how long for one operation."""
    before, began = processes.cpu_us(), time.perf_counter()
    work()
    took_s, after = time.perf_counter() - began, processes.cpu_us()
    used: dict[str, float] = defaultdict(float)
    for (process, pid), cpu_us in after.items():
        used[process] += (cpu_us - before.get((process, pid), 0.0)) / operations
    told = ", ".join(f"{process} {cpu_us:.0f}" for process, cpu_us in sorted(used.items()) if cpu_us >= 1)
    print(f"| {name} | {operations / took_s:,.0f} | {sum(used.values()):.0f} | {told} |", flush=True)


def at_once(threads: int, operations: int, work: Callable[[int], object]) -> Callable[[], object]:
    """The operations from several threads of the client."""

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(operations)))

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--operations", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=16)
    given = parser.parse_args()
    number, threads = given.operations, given.threads
    with platform(("--processes",)) as server:
        processes = Processes(server)
        print(f"{commit()}, {machine()}; services as processes; durability: {durability()}; values of 100 bytes\n")
        print("| operation | per second | CPU us, all | by process |\n|---|---|---|---|")
        with squall.Dict.ephemeral() as table, squall.Queue.ephemeral() as queue:
            table["warm"] = queue.len()
            fresh = itertools.count()
            rows: list[tuple[str, int, Callable[[], object]]] = [
                ("Dict.put, one thread", number // 4, at_once(1, number // 4, lambda n: table.put(n, VALUE))),
                ("Dict.get, one thread", number // 2, at_once(1, number // 2, table.get)),
                (f"Dict.put, {threads} threads", number, at_once(threads, number, lambda n: table.put(n, VALUE))),
                (f"Dict.get, {threads} threads", number, at_once(threads, number, table.get)),
                ("Dict.update", 5 * number, lambda: table.update(dict.fromkeys(range(5 * number), VALUE))),
                ("Queue.put, one thread", number // 4, at_once(1, number // 4, lambda n: queue.put(VALUE))),
                ("Queue.get, one thread", number // 4, at_once(1, number // 4, lambda _: queue.get())),
                (f"Queue.put, {threads} threads", number, at_once(threads, number, lambda n: queue.put(next(fresh)))),
                (f"Queue.get, {threads} threads", number, at_once(threads, number, lambda _: queue.get())),
                ("Queue.put_many", 2 * number, lambda: queue.put_many(list(range(2 * number)))),
                ("Queue.get_many", 2 * number, lambda: queue.get_many(2 * number)),
            ]
            for name, operations, work in rows:
                measured(processes, name, operations, work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
