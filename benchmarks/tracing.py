"""What tracing costs: CPU per call in all processes, of calls in traces that are recorded and in traces that are not.

    .venv/bin/python benchmarks/tracing.py                 20 pairs of blocks of warm calls, and as many of maps
    .venv/bin/python benchmarks/tracing.py --pairs 40

One platform; blocks with and without spans take turns, so that what else the machine does meets both. What is sent a
while later (rows in bunches) is waited for at the end of each block.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import squall

if squall.is_local():  # a container has this file alone
    from calls import commit, machine
    from hops import Processes, platform
    from opentelemetry import trace
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

app = squall.App("bench-tracing")

WARM_UP = 300
WARM_CALLS = 200
MAP_INPUTS = 2000
SETTLE_S = 1.2
"""Rows of spans leave their process at most a second later."""


@app.function(min_containers=1)
def noop() -> None:
    return None


@app.function(min_containers=4, max_containers=4)
def noop_mapped(value: int) -> int:
    return value


def warm() -> None:
    for _ in range(WARM_CALLS):
        noop.remote()


def mapped() -> None:
    if list(noop_mapped.map(range(MAP_INPUTS))) != list(range(MAP_INPUTS)):
        raise SystemExit("map lost, repeated or reordered a result")


def cpu_us(processes: Processes, work: Callable[[], None], *, recorded: bool) -> dict[str, float]:
    """By kind of process, and of all of them, while the work is done in a trace of this program's own."""
    context = SpanContext(
        trace_id=time.time_ns(), span_id=1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED * recorded)
    )
    before = processes.cpu_us()
    with trace.use_span(NonRecordingSpan(context)):
        work()
    time.sleep(SETTLE_S)
    used: dict[str, float] = defaultdict(float)
    for key, us in processes.cpu_us().items():
        used[key[0]] += us - before.get(key, 0.0)
    return {**used, "all": sum(used.values())}


def pairs(processes: Processes, what: str, work: Callable[[], None], count: int, blocks: int) -> Iterator[str]:
    """Rows of the table, the most expensive process first."""
    found: list[dict[bool, dict[str, float]]] = []
    for number in range(blocks):
        order = (True, False) if number % 2 == 0 else (False, True)
        found.append({recorded: cpu_us(processes, work, recorded=recorded) for recorded in order})
        told = " and ".join(f"{found[-1][recorded]['all'] / count:.0f}" for recorded in (True, False))
        print(f"{what} {number}: {told}", file=sys.stderr, flush=True)
    for name in sorted(found[0][True], key=lambda name: -found[0][True][name]):
        every, none = ([pair[recorded].get(name, 0.0) / count for pair in found] for recorded in (True, False))
        low, middle, high = statistics.quantiles([one - other for one, other in zip(every, none, strict=True)], n=4)
        share = 100 * middle / statistics.median(none) if statistics.median(none) else 0.0
        yield (
            f"| {what}: {name} | {statistics.median(every):.0f} | {statistics.median(none):.0f} "
            f"| {middle:+.0f} ({low:+.0f} to {high:+.0f}) | {share:+.1f} % |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    blocks = parser.parse_args().pairs
    with platform(("--processes",)) as server, app.run():
        processes = Processes(server)
        for _ in range(WARM_UP):
            noop.remote()
        list(noop_mapped.map(range(500)))
        rows = [
            *pairs(processes, "warm", warm, WARM_CALLS, blocks),
            *pairs(processes, "map", mapped, MAP_INPUTS, blocks),
        ]
    print(f"{commit()}, {machine()}; services as processes; {blocks} pairs of blocks in turns\n")
    print("| CPU us per call | recorded | not | median of the differences (half of them) | tracing adds |")
    print("|---|---|---|---|---|", *rows, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
