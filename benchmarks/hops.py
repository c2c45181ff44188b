"""Where the time of a call goes: a budget for each hop of a warm call, and CPU microseconds per call and process.

    .venv/bin/python benchmarks/hops.py                    each service as its own process
    .venv/bin/python benchmarks/hops.py --tasks            all services in one process
    .venv/bin/python benchmarks/hops.py --only warm,map    some of warm, map, spawn

The hops come from the spans that every call carries (docs/decisions/0003), nothing is added to the call for this. CPU
comes from /proc: it hardly depends on what else the machine does, wall-clock times do.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import squall
from squall import config, local
from squall.client import Client
from squall.http_api.routes import Route

if squall.is_local():  # a container has this file alone
    from calls import commit, durability, machine, percentile

app = squall.App("bench-hops")

WARM_UP = 300
WARM_CALLS = 1500
TRACED = 200
MAP_INPUTS = 5000
SPAWNS = 1500
TICK_US = 1_000_000 / os.sysconf("SC_CLK_TCK")
IDLE_S = 3.0
SETTLE_S = 1.0
"""After the last answer services still write traces and usage; that is part of a call's cost."""

Span = Mapping[str, Any]


@app.function(min_containers=1)
def noop() -> str | None:
    return squall.current_function_call_id()


@app.function()
def noop_mapped(value: int) -> int:
    return value


@app.function()
def noop_spawned() -> None:
    return None


# ---------------------------------------------------------------- CPU


class Processes:
    """The platform's processes and this one, by name."""

    def __init__(self, server: local.LocalServer) -> None:
        self._named = {int(part["pid"]): str(part["name"]) for part in server.processes}
        self._root = server.pid

    def cpu_us(self) -> dict[tuple[str, int], float]:
        """CPU time so far, by name and process id."""
        stats = dict(_stats())
        return {(name, pid): stats[pid][1] * TICK_US for pid in stats if (name := self._name(pid, stats))}

    def _name(self, pid: int, stats: Mapping[int, tuple[int, int]]) -> str:
        if pid == os.getpid():
            return "caller"
        if pid in self._named:
            return self._named[pid]
        above = stats[pid][0]
        while above in stats:
            if self._named.get(above) == "gpu-agent":
                return "runner"
            if above in self._named:
                return self._named[above]
            if above == self._root:
                return "platform"
            above = stats[above][0]
        return "platform" if pid == self._root else ""


def _stats() -> Iterator[tuple[int, tuple[int, int]]]:
    """Process id -> (parent, ticks used)."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            yield int(folder.name), (int(fields[1]), int(fields[11]) + int(fields[12]))


class CpuTable:
    """One column for each kind of work."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._columns: dict[str, dict[str, float]] = {}
        self._totals: dict[str, float] = {}
        self._idle: dict[str, float] = {}
        """Microseconds of CPU per second without calls."""

    def measure_idle(self) -> None:
        """What the platform uses for itself, which is no call's cost. Once the templates are there."""
        time.sleep(IDLE_S)
        used, took_s = self._used(lambda: time.sleep(IDLE_S))
        self._idle = {name: us / took_s for name, us in used.items()}
        self._columns["idle, per second"] = self._idle

    def measure(self, what: str, calls: int, work: Callable[[], None]) -> None:
        """Run it; a call's share of what every process used for it."""
        began = time.perf_counter()
        rates: list[float] = []

        def settled() -> None:
            work()
            rates.append(calls / (time.perf_counter() - began))
            time.sleep(SETTLE_S)

        used, took_s = self._used(settled)
        column = {name: (us - self._idle.get(name, 0.0) * took_s) / calls for name, us in used.items()}
        self._totals[what] = sum(column.values())
        self._columns[f"{what} ({rates[0]:.0f}/s)"] = column

    def totals(self) -> dict[str, float]:
        """Microseconds of a call in all processes, by kind of work."""
        return self._totals

    def _used(self, work: Callable[[], None]) -> tuple[dict[str, float], float]:
        before, began = self._processes.cpu_us(), time.perf_counter()
        work()
        used: dict[str, float] = defaultdict(float)
        for key, us in self._processes.cpu_us().items():
            used[key[0]] += us - before.get(key, 0.0)
        return used, time.perf_counter() - began

    def print(self) -> None:
        """As Markdown, the most expensive process first."""
        columns = list(self._columns.values())
        names = sorted({name for column in columns for name in column}, key=lambda name: -columns[-1].get(name, 0.0))
        print(f"\n| CPU us per call | {' | '.join(self._columns)} |\n|---|{'---|' * len(columns)}")
        for name in names:
            print(f"| {name} | {' | '.join(f'{column.get(name, 0.0):.0f}' for column in columns)} |")
        print(f"| all | {' | '.join(f'{sum(column.values()):.0f}' for column in columns)} |")


# ---------------------------------------------------------------- hops

HOPS = (
    "SDK encode",
    "HTTP there + admission",
    "journal: publish + ack",
    "source + pull",
    "dispatch in the agent",
    "frame to the runner",
    "runner: load, run, dump",
    "frame back",
    "record: publish + ack",
    "reply to the gateway",
    "answer written",
    "HTTP back",
    "SDK decode",
    "SDK rest",
)


def hops_of(spans: list[Span]) -> dict[str, int]:
    """Nanoseconds of each hop of one warm call. Raises `KeyError` when a span is missing."""
    by_name = {str(span["name"]): (int(span["start_ns"]), int(span["end_ns"])) for span in spans}
    runner = [by_name[name] for name in ("arguments.load", "user.code", "result.dump")]
    call, encode = by_name["call"], by_name["args.encode"]
    journal, attempt, record = by_name["journal.publish"], by_name["attempt"], by_name["result.publish"]
    dispatch, answer, decode = by_name["dispatch"], by_name["result.return"], by_name["result.decode"]
    return {
        "SDK encode": encode[1] - encode[0],
        "HTTP there + admission": journal[0] - encode[1],
        "journal: publish + ack": journal[1] - journal[0],
        # May be negative: the queue has the call before the gateway has read the acknowledgement.
        "source + pull": dispatch[0] - journal[1],
        "dispatch in the agent": attempt[0] - dispatch[0],
        "frame to the runner": runner[0][0] - attempt[0],
        "runner: load, run, dump": runner[-1][1] - runner[0][0],
        "frame back": attempt[1] - runner[-1][1],
        "record: publish + ack": record[1] - record[0],
        "reply to the gateway": answer[0] - record[1],
        "answer written": answer[1] - answer[0],
        "HTTP back": decode[0] - answer[1],
        "SDK decode": decode[1] - decode[0],
        "SDK rest": (encode[0] - call[0]) + (call[1] - decode[1]),
    }


def print_hops(calls: list[str]) -> None:
    """The median and the slow end of each hop."""
    client, found = Client(config.ServerAddress(os.environ["SQUALL_SERVER_URL"], os.environ["SQUALL_TOKEN"])), []
    for call in calls:
        try:
            found.append(hops_of(client.json("GET", Route.CALL_TRACE.format(call=call))["spans"]))
        except KeyError as missing:
            print(f"{call} has no span {missing}", file=sys.stderr)
    print(f"\n| hop of a warm call ({len(found)} calls) | p50 us | p90 us |\n|---|---|---|")
    for hop in HOPS:
        values = [hops[hop] / 1000 for hops in found]
        print(f"| {hop} | {percentile(values, 0.5):.0f} | {percentile(values, 0.9):.0f} |")
    whole = [sum(hops.values()) / 1000 for hops in found]
    print(f"| whole | {percentile(whole, 0.5):.0f} | {percentile(whole, 0.9):.0f} |")


# ---------------------------------------------------------------- work


def measure_warm(table: CpuTable) -> None:
    for _ in range(WARM_UP):
        noop.remote()
    took: list[float] = []
    calls: list[str] = []

    def work() -> None:
        for _ in range(WARM_CALLS):
            began = time.perf_counter()
            calls.append(noop.remote() or "")
            took.append((time.perf_counter() - began) * 1000)

    table.measure("warm", WARM_CALLS, work)
    print(f"warm: p50 {percentile(took, 0.5):.2f} ms, p99 {percentile(took, 0.99):.2f} ms, min {min(took):.2f} ms")
    print_hops(calls[-TRACED:])


def measure_map(table: CpuTable) -> None:
    list(noop_mapped.map(range(500)))
    time.sleep(2 * SETTLE_S)  # the containers that it asked for have started
    table.measure("map", MAP_INPUTS, lambda: _checked_map(MAP_INPUTS))


def _checked_map(count: int) -> None:
    if list(noop_mapped.map(range(count))) != list(range(count)):
        raise SystemExit("map lost, repeated or reordered a result")


def measure_spawn(table: CpuTable) -> None:
    noop_spawned.remote()

    def work() -> None:
        squall.FunctionCall.gather(*(noop_spawned.spawn() for _ in range(SPAWNS)))

    table.measure("spawn, with its result", SPAWNS, work)


MEASUREMENTS = {"warm": measure_warm, "map": measure_map, "spawn": measure_spawn}


@contextmanager
def platform(arguments: tuple[str, ...]) -> Iterator[local.LocalServer]:
    """A temporary one, and the environment that leads to it."""
    with local.start_ephemeral(arguments) as started:
        os.environ.update(SQUALL_SERVER_URL=started.url, SQUALL_TOKEN=started.token)
        yield started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tasks", action="store_true", help="all services in one process")
    parser.add_argument("--only", default=",".join(MEASUREMENTS), help="names, separated by commas")
    given = parser.parse_args()
    with platform(() if given.tasks else ("--processes",)) as server:
        form = "one process and nats-server" if given.tasks else "services as processes"
        print(f"{commit()}, {machine()}; {form}; durability: {durability()}\n")
        table = CpuTable(Processes(server))
        with app.run():
            noop.remote()
            table.measure_idle()
            for name in given.only.split(","):
                MEASUREMENTS[name](table)
            table.print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
