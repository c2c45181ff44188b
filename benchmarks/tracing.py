"""What tracing costs: CPU microseconds per call in all processes, with spans of every call and of none, in turns.

    .venv/bin/python benchmarks/tracing.py                 3 rounds of warm calls and of maps, each with both settings
    .venv/bin/python benchmarks/tracing.py --rounds 5
Every round starts the platform anew: the share of calls with spans (trace_ratio) is a setting of the gateway.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

import squall

if squall.is_local():  # a container has this file alone
    from calls import commit, machine
    from hops import CpuTable, Processes, platform

app = squall.App("bench-tracing")

WARM_UP = 300
WARM_CALLS = 1500
MAP_INPUTS = 5000
RATIOS = ("1", "0")
SETTLE_S = 2.0


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


def measure(ratio: str) -> dict[str, float]:
    """CPU microseconds of a warm call and of an input of a map."""
    os.environ["SQUALL_GATEWAY_TRACE_RATIO"] = ratio
    with platform(("--processes",)) as server, app.run():
        table = CpuTable(Processes(server))
        for _ in range(WARM_UP):
            noop.remote()
        list(noop_mapped.map(range(500)))
        time.sleep(SETTLE_S)
        table.measure_idle()
        table.measure("warm", WARM_CALLS, warm)
        table.measure("map", MAP_INPUTS, mapped)
        return table.totals()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    found: dict[str, dict[str, list[float]]] = {"warm": {}, "map": {}}
    for number in range(rounds):
        for ratio in RATIOS if number % 2 == 0 else RATIOS[::-1]:
            for what, us in measure(ratio).items():
                found[what].setdefault(ratio, []).append(us)
            told = ", ".join(f"{what} {values[ratio][-1]:.0f}" for what, values in found.items())
            print(f"round {number}, trace_ratio {ratio}: {told}", file=sys.stderr, flush=True)
    print(f"{commit()}, {machine()}; services as processes\n")
    print("| CPU us per call, all processes | every call | none | tracing adds |\n|---|---|---|---|")
    for what, values in found.items():
        every, none = (statistics.median(values[ratio]) for ratio in RATIOS)
        print(f"| {what} | {every:.0f} | {none:.0f} | {100 * (every / none - 1):.1f} % |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
