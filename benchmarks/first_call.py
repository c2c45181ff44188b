"""The first call of a function scaled to zero, as its caller sees it, on a running platform; and its phases.

    .venv/bin/python benchmarks/first_call.py                       containers are processes
    .venv/bin/python benchmarks/first_call.py --backend sandbox     isolated containers (needs root), or gvisor
    .venv/bin/python benchmarks/first_call.py --kinds stdlib,numpy --calls 50 --fresh

Pools of one function are called in turn; when a pool's turn comes again, its container is gone. A call that found one
all the same is not counted. `--fresh`: without templates, each container imports for itself. `numpy` and `torch`: in an
image with that package, imported by the module. `weights`: torch, and 500 MB made by `@enter(snap=True)`. At the end:
many containers of one function at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import squall

if squall.is_local():  # a container has this file alone, and imports what a user's file would
    import argparse
    import os
    import tempfile
    from collections import defaultdict
    from pathlib import Path

    from calls import commit, durability, machine, percentile
    from hops import platform

    from squall import config
    from squall.client import Client
    from squall.http_api.routes import Route

app = squall.App("bench-first-call")
plain = squall.Image.debian_slim("3.11")
with_numpy = plain.pip_install("numpy")
with_torch = plain.pip_install("torch")
WINDOW_S = 2
POOLS = 8
GAP_S = 0.75
"""Eight of them: the window, the autoscaler's tick and the container's end."""
HOLD_S = 10.0

with with_numpy.imports():
    import numpy as np

with with_torch.imports():
    import torch


@app.cls(image=plain, scaledown_window=WINDOW_S)
class Stdlib:
    """Nothing but Python."""

    pool: int = squall.parameter(default=0)

    @squall.method()
    def first(self) -> str | None:
        return squall.current_function_call_id()


@app.cls(image=with_numpy, scaledown_window=WINDOW_S)
class Numpy:
    """With an import that takes a while."""

    pool: int = squall.parameter(default=0)

    @squall.method()
    def first(self) -> str | None:
        np.ones((64, 64)) @ np.ones((64, 64))
        return squall.current_function_call_id()


@app.cls(image=plain, scaledown_window=WINDOW_S, use_template=False)
class StdlibFresh:
    """A start of its own for each container."""

    pool: int = squall.parameter(default=0)

    @squall.method()
    def first(self) -> str | None:
        return squall.current_function_call_id()


@app.cls(image=with_numpy, scaledown_window=WINDOW_S, use_template=False)
class NumpyFresh:
    """Imports in each container."""

    pool: int = squall.parameter(default=0)

    @squall.method()
    def first(self) -> str | None:
        np.ones((64, 64)) @ np.ones((64, 64))
        return squall.current_function_call_id()


@app.cls(image=with_torch, scaledown_window=WINDOW_S)
class Torch:
    """With an import that takes seconds."""

    pool: int = squall.parameter(default=0)

    @squall.method()
    def first(self) -> str | None:
        torch.ones((64, 64)) @ torch.ones((64, 64))
        return squall.current_function_call_id()


@app.cls(image=with_torch, scaledown_window=WINDOW_S, use_template=False)
class TorchFresh:
    """Imports in each container."""

    pool: int = squall.parameter(default=0)

    @squall.method()
    def first(self) -> str | None:
        torch.ones((64, 64)) @ torch.ones((64, 64))
        return squall.current_function_call_id()


@app.cls(image=with_torch, scaledown_window=WINDOW_S, enable_memory_snapshot=True)
class Weights:
    """A model that is large and computes little, loaded once."""

    pool: int = squall.parameter(default=0)

    @squall.enter(snap=True)
    def load(self) -> None:
        self.weights = torch.ones((125, 1000, 1000))

    @squall.method()
    def first(self) -> str | None:
        self.weights[0, :64] @ self.weights[1]
        return squall.current_function_call_id()


@app.cls(image=with_torch, scaledown_window=WINDOW_S, use_template=False)
class WeightsFresh:
    """Loaded by each container."""

    pool: int = squall.parameter(default=0)

    @squall.enter()
    def load(self) -> None:
        self.weights = torch.ones((125, 1000, 1000))

    @squall.method()
    def first(self) -> str | None:
        self.weights[0, :64] @ self.weights[1]
        return squall.current_function_call_id()


@app.function(image=plain, scaledown_window=WINDOW_S, cpu=0.005, memory=32)
def hold(_: int) -> float:
    """So little of the machine that its limits are not what is measured."""
    began = time.time()
    time.sleep(HOLD_S)
    return began


KINDS: Mapping[str, tuple[Any, Any]] = {
    "stdlib": (Stdlib, StdlibFresh),
    "numpy": (Numpy, NumpyFresh),
    "torch": (Torch, TorchFresh),
    "weights": (Weights, WeightsFresh),
}


class Phases:
    """The spans of calls: when each begins after the call, and how long it takes."""

    def __init__(self) -> None:
        address = config.ServerAddress(os.environ["SQUALL_SERVER_URL"], os.environ["SQUALL_TOKEN"])
        self._client = Client(address)

    def of(self, call: str) -> dict[str, tuple[float, float]]:
        """Milliseconds of begin and length, by name."""
        spans = self._client.json("GET", Route.CALL_TRACE.format(call=call))["spans"]
        began = min(int(span["start_ns"]) for span in spans if span["name"] == "call")
        return {
            str(span["name"]): (
                (int(span["start_ns"]) - began) / 1e6,
                (int(span["end_ns"]) - int(span["start_ns"])) / 1e6,
            )
            for span in spans
        }


def measure(title: str, cls: Any, calls: int) -> None:
    """So many first calls, and where the time of the median one went."""
    pools = [cls(pool=number) for number in range(POOLS)]
    for pool in pools:
        pool.first.remote()
    time.sleep(POOLS * GAP_S)
    took: list[tuple[float, str]] = []
    while len(took) < calls + POOLS:
        began = time.perf_counter()
        call = pools[len(took) % POOLS].first.remote()
        took.append(((time.perf_counter() - began) * 1000, call))
        time.sleep(GAP_S)
    time.sleep(1.0)
    show(title, [(ms, phases) for ms, call in took if "container.start" in (phases := Phases().of(call))])


def show(title: str, found: Sequence[tuple[float, Mapping[str, tuple[float, float]]]]) -> None:
    """A row, and the phases."""
    values = [ms for ms, _ in found]
    if not values:
        print(f"| {title} | every call found a container |")
        return
    print(
        f"| {title} | p50 {percentile(values, 0.5):.0f} ms, p95 {percentile(values, 0.95):.0f} ms "
        f"| {len(values)} calls, {min(values):.0f} to {max(values):.0f} ms |"
    )
    parts: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _, phases in found:
        for name, times in phases.items():
            parts[name].append(times)
    rows = [
        (percentile([began for began, _ in times], 0.5), percentile([length for _, length in times], 0.5), name)
        for name, times in parts.items()
    ]
    for began, length, name in sorted(rows):
        print(f"    {name:24} begins at {began:7.1f} ms, takes {length:7.1f} ms")


def burst(count: int) -> None:
    """Until so many containers of one function run at the same time; each holds one input."""
    hold.remote(0)
    time.sleep(2 * WINDOW_S + 2)
    began = time.time()
    started = sorted(hold.map(range(count)))
    last = started[-1] - began
    print(f"| {count} inputs of {HOLD_S:g} s each, from zero | the last has begun after {last:.2f} s | |")


def run(given: argparse.Namespace, arguments: tuple[str, ...]) -> None:
    """All of it, on a platform of its own."""
    with platform(("--processes", *arguments)), app.run():
        print(f"{commit()}, {machine()}; {given.backend}; durability: {durability()}\n")
        print("| first call of a function scaled to zero | | |\n|---|---|---|", flush=True)
        for kind in given.kinds.split(","):
            forked, fresh = KINDS[kind]
            measure(f"{kind}, template", forked, given.calls)
            if given.fresh:
                measure(f"{kind}, fresh", fresh, given.calls)
        if given.burst:
            burst(given.burst)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("process", "sandbox", "gvisor", "docker"), default="process")
    parser.add_argument("--kinds", default="stdlib")
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--burst", type=int, default=0, help="so many containers at once")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(given, ("--backend", given.backend, "--data", str(Path(folder, "data"))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
