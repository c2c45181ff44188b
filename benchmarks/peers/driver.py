"""One session: one engine started, warmed up, measured and stopped, in that engine's own Python.

    python -m benchmarks.peers.driver PLAN      started by benchmarks.peers, with PLAN in JSON

Writes a line of JSON per work to the plan's file as soon as it has it: a session that is killed keeps what it had.
Standard library only, apart from the one engine.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.peers.engines.contract import Engine, NotOffered
from benchmarks.peers.processes import cpu_seconds
from benchmarks.peers.works import DEPTH, PAYLOAD_BYTES, Sample, Work

WARM_UP_CALLS = 100
WARM_UP_FAN_OUT = 200
WARM_UP_LIMIT_S = 5.0
SETTLE_LIMIT_S = 10.0
REST_LIMIT_S = 90.0
RESTING_CORES = 0.15

LOADERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "squall": ("squall_engine", "SquallEngine", {"sync_interval": "always"}),
    "squall-1s": ("squall_engine", "SquallEngine", {"sync_interval": "1s"}),
    "ray": ("ray_engine", "RayEngine", {}),
    "celery": ("celery_engine", "CeleryEngine", {"durable": False}),
    "celery-durable": ("celery_engine", "CeleryEngine", {"durable": True}),
    "dask": ("dask_engine", "DaskEngine", {}),
    "temporal": ("temporal_engine", "TemporalEngine", {}),
}
"""Module, class and arguments of each engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a session is told."""

    engine: str
    round: int
    folder: str
    output: str
    works: tuple[Work, ...] = ()
    depths: tuple[int, ...] = ()

    @classmethod
    def decode(cls, text: str) -> Plan:
        """The plan of a command line."""
        body = json.loads(text)
        return cls(**{**body, "works": tuple(Work(**work) for work in body["works"]), "depths": tuple(body["depths"])})


class Session:
    """Runs the works of a plan on a started engine."""

    def __init__(self, plan: Plan, engine: Engine) -> None:
        self._plan, self._engine = plan, engine

    def samples(self) -> Iterator[Sample]:
        """One per work and depth, in order. An engine's own error ends its work, not the session."""
        for work in self._plan.works:
            yield self._guarded(work, functools.partial(self._measure, work))
        for depth in self._plan.depths:
            yield self._guarded(DEPTH, functools.partial(self._deep, depth), depth)

    def _guarded(self, work: Work, measure: Callable[[], Sample], depth: int = 0) -> Sample:
        blank = self._sample(work, depth=depth)
        try:
            return measure()
        except NotOffered as reason:
            return replace(blank, skipped=str(reason))
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is a cell of the table
            return replace(blank, skipped=f"failed: {type(error).__name__}: {error}"[:200])

    def _sample(self, work: Work, **known: Any) -> Sample:
        plan = self._plan
        return Sample(engine=plan.engine, work=work.name, round=plan.round, wanted=work.count, **known)

    def _measure(self, work: Work) -> Sample:
        if work.name == "sequential":
            return self._one_by_one(work, self._checked_call)
        if work.name == "payload":
            return self._one_by_one(work, self._echo)
        if work.name == "enqueue":
            self._settle()
            return self._one_by_one(work, self._engine.enqueue)
        if work.name == "enqueue_many":
            return self._in_one(work, lambda: self._engine.enqueue_many(work.count, work.limit_s))
        return self._in_one(work, lambda: self._fan_out(work))

    def _one_by_one(self, work: Work, action: Callable[[int], object]) -> Sample:
        cpu_s, took_ms = cpu_seconds(Path(self._plan.folder)), []
        began = last = time.perf_counter()
        for number in range(work.count):
            action(number)
            now = time.perf_counter()
            took_ms.append((now - last) * 1000)
            last = now
            if now - began > work.limit_s:
                break
        cpu_s = cpu_seconds(Path(self._plan.folder)) - cpu_s
        return self._sample(
            work, done=len(took_ms), seconds=last - began, cpu_s=cpu_s, latencies_ms=tuple(round(t, 4) for t in took_ms)
        )

    def _in_one(self, work: Work, action: Callable[[], int]) -> Sample:
        cpu_s = cpu_seconds(Path(self._plan.folder))
        began = time.perf_counter()
        done = action()
        seconds = time.perf_counter() - began
        return self._sample(work, done=done, seconds=seconds, cpu_s=cpu_seconds(Path(self._plan.folder)) - cpu_s)

    def _deep(self, depth: int) -> Sample:
        self._engine.prepare_depth(depth)
        self._rest()
        return replace(self._one_by_one(DEPTH, self._engine.enqueue_deep), depth=depth)

    # --- calls whose values are looked at

    def _checked_call(self, number: int) -> None:
        if self._engine.call(number) != number:
            raise ValueError(f"call {number} returned another value")

    def _echo(self, number: int) -> None:
        payload = number.to_bytes(4, "big") * (PAYLOAD_BYTES // 4)
        if self._engine.call(payload) != payload:
            raise ValueError(f"payload {number} came back changed")

    def _fan_out(self, work: Work) -> int:
        values = self._engine.fan_out("work" if work.name == "fan_out_work" else "noop", work.count, work.limit_s)
        if len(values) == work.count and values != list(range(work.count)):
            raise ValueError("a fan-out lost, repeated or reordered a value")
        return len(values)

    # --- not measured

    def warm_up(self) -> None:
        """Processes started, code imported, connections open."""
        until = time.monotonic() + WARM_UP_LIMIT_S
        self._engine.call(0)
        for _ in range(WARM_UP_CALLS):
            if time.monotonic() > until:
                break
            self._engine.call(0)
        self._engine.fan_out("work", 20, WARM_UP_LIMIT_S)
        self._engine.fan_out("noop", WARM_UP_FAN_OUT, WARM_UP_LIMIT_S)

    def _settle(self) -> None:
        """What was enqueued before is done, so that it does not compete: queues are first in, first out."""
        until = time.monotonic() + SETTLE_LIMIT_S
        self._engine.call(0)
        if time.monotonic() > until:
            raise NotOffered("the list before it had not been worked off in time")

    def _rest(self) -> None:
        """What an engine still does with a queue that it has just been given is no cost of the next call."""
        until, before_s = time.monotonic() + REST_LIMIT_S, cpu_seconds(Path(self._plan.folder))
        while time.monotonic() < until:
            time.sleep(1.0)
            now_s = cpu_seconds(Path(self._plan.folder))
            if now_s - before_s < RESTING_CORES:
                return
            before_s = now_s


def load(name: str) -> Engine:
    """The engine of that name, not started."""
    module, cls, arguments = LOADERS[name]
    engine: Engine = getattr(importlib.import_module(f"benchmarks.peers.engines.{module}"), cls)(**arguments)
    return engine


def main() -> int:
    plan = Plan.decode(sys.argv[1])
    engine = load(plan.engine)

    def write(sample: Sample) -> None:
        with Path(plan.output).open("a") as output:
            output.write(json.dumps(sample.to_wire()) + "\n")

    try:
        notes = engine.start(Path(plan.folder))
        session = Session(plan, engine)
        session.warm_up()
        write(Sample(engine=plan.engine, work="start", round=plan.round, notes=notes))
        for sample in session.samples():
            write(sample)
    finally:
        with contextlib.suppress(Exception):  # it may have failed to start; what is left is ended by its ids
            engine.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
