"""Dicts and queues from one client: operations per second, how long one takes, and the CPU of each process for one.

.venv/bin/python benchmarks/state.py
.venv/bin/python benchmarks/state.py --threads 32 --operations 4000 --only put,get
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from calls import commit, durability, machine, percentile
from hops import Processes, platform

import squall

VALUE = b"x" * 100
AT_ONCE = 100
"""Items of one `put_many` or `get_many`."""

Took = list[float]
Work = Callable[[int], object]
Row = tuple[str, int, int, Callable[[], Took]]
"""Name, operations, how many of them are one call, and what makes them."""


def measured(processes: Processes, row: Row) -> None:
    """One row: how fast, how long one call takes, and who worked how long for one operation."""
    name, operations, _, work = row
    before, began = processes.cpu_us(), time.perf_counter()
    took_each = work()
    took_s, after = time.perf_counter() - began, processes.cpu_us()
    used: dict[str, float] = defaultdict(float)
    for (process, pid), cpu_us in after.items():
        used[process] += (cpu_us - before.get((process, pid), 0.0)) / operations
    told = ", ".join(f"{process} {cpu_us:.0f}" for process, cpu_us in sorted(used.items()) if cpu_us >= 1)
    p50, p99 = (f"{percentile(took_each, share) * 1000:.2f}" for share in (0.5, 0.99))
    print(f"| {name} | {operations / took_s:,.0f} | {p50} | {p99} | {sum(used.values()):.0f} | {told} |", flush=True)


def threads_at_once(number: int, calls: int, work: Work) -> Callable[[], Took]:
    """The calls from several threads of the client."""

    def run() -> Took:
        numbers, took = itertools.count(), Took()

        def loop() -> None:
            while (n := next(numbers)) < calls:
                began = time.perf_counter()
                work(n)
                took.append(time.perf_counter() - began)

        workers = [threading.Thread(target=loop) for _ in range(number)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return took

    return run


def tasks_at_once(number: int, calls: int, work: Callable[[int], Awaitable[object]]) -> Callable[[], Took]:
    """The calls from several tasks of one event loop."""

    def run() -> Took:
        numbers, took = itertools.count(), Took()

        async def loop() -> None:
            while (n := next(numbers)) < calls:
                began = time.perf_counter()
                await work(n)
                took.append(time.perf_counter() - began)

        async def everything() -> None:
            await asyncio.gather(*(loop() for _ in range(number)))

        asyncio.run(everything())
        return took

    return run


def rows(number: int, threads: int, table: squall.Dict, queue: squall.Queue) -> Iterator[Row]:
    """In an order in which each finds what it needs."""
    few = number // 4

    def each(name: str, bound: Any, *given: Callable[[int], Any]) -> Iterator[Row]:
        """One operation, alone and from many threads and tasks."""

        def arguments(n: int) -> list[Any]:
            return [make(n) for make in given]

        yield f"{name}, one thread", few, 1, threads_at_once(1, few, lambda n: bound(*arguments(n)))
        yield f"{name}, {threads} threads", number, 1, threads_at_once(threads, number, lambda n: bound(*arguments(n)))
        yield f"{name}, {threads} tasks", number, 1, tasks_at_once(threads, number, lambda n: bound.aio(*arguments(n)))

    def value(_: int) -> bytes:
        return VALUE

    fresh = itertools.count()
    yield from each("Dict.put", table.put, int, value)
    yield from each("Dict.get", table.get, int)
    yield from each("Dict.contains", table.contains, int)
    yield from each("Dict.put(skip_if_exists)", PutAbsent(table), lambda n: f"new-{next(fresh)}")
    popped = itertools.count()
    yield from each("Dict.pop", table.pop, lambda n: f"new-{next(popped)}")
    yield from each("Queue.put", queue.put, value)
    yield from each("Queue.len", queue.len)
    yield from each("Queue.get", queue.get)
    mixed = mixture(table, queue)
    yield f"Dict and Queue mixed, {threads} threads", number, 1, threads_at_once(threads, number, mixed)
    many = 5 * number // AT_ONCE
    items = [VALUE] * AT_ONCE
    for each_name, work in (
        ("Queue.put_many", lambda _: queue.put_many(items)),
        ("Queue.get_many", lambda _: queue.get_many(AT_ONCE)),
    ):
        made = threads_at_once(1, many, work)
        yield f"{each_name} of {AT_ONCE}, one thread", many * AT_ONCE, AT_ONCE, made
    pairs = dict.fromkeys(range(5 * number), VALUE)
    yield "Dict.update, one", len(pairs), len(pairs), threads_at_once(1, 1, lambda _: table.update(pairs))
    table.clear()
    table.update(dict.fromkeys(range(100), VALUE))
    yield from each("Dict.len of 100 keys", table.len)


class PutAbsent:
    """`put` of a key that is not there."""

    def __init__(self, table: squall.Dict) -> None:
        self._table = table

    def __call__(self, key: str) -> bool:
        return self._table.put(key, VALUE, skip_if_exists=True)

    async def aio(self, key: str) -> bool:
        """The same."""
        return await self._table.put.aio(key, VALUE, skip_if_exists=True)


def mixture(table: squall.Dict, queue: squall.Queue) -> Work:
    """Puts and gets of both, in equal parts. The queue never runs empty for long: one takes what another puts."""

    def work(n: int) -> object:
        match n % 4:
            case 0:
                return table.put(n, VALUE)
            case 1:
                return queue.put(VALUE)
            case 2:
                return table.get(n)
            case _:
                return queue.get(block=False)

    return work


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--operations", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--only", default="", help="words, separated by commas: rows whose name has one of them")
    given = parser.parse_args()
    words = [word for word in given.only.split(",") if word]
    with platform(("--processes",)) as server:
        processes = Processes(server)
        print(f"{commit()}, {machine()}; services as processes; durability: {durability()}; values of 100 bytes\n")
        print("| operation | per second | p50 ms | p99 ms | CPU us, all | by process |\n|---|---|---|---|---|---|")
        with squall.Dict.ephemeral() as table, squall.Queue.ephemeral() as queue:
            table["warm"] = queue.len()
            for row in rows(given.operations, given.threads, table, queue):
                if not words or any(word in row[0] for word in words):
                    measured(processes, row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
