"""Containers of a simulation: user code as a plan of what each run of an input does, and the effects that it leaves.

Containers are processes of their own: a paused agent's go on, a killed agent's end with it.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.simulation.loop import Process, SimLoop

from squall.spec import Encoding
from squall_gpu_agent.backend import (
    Capabilities,
    ContainerRequest,
    End,
    Exit,
    Failed,
    FailureKind,
    InputRequest,
    Isolation,
    Lost,
    NotBegun,
    Output,
    Phase,
    StartFailed,
    StartFailureKind,
)
from squall_images.eviction import Freed, Unwanted

MONDAY_NS = 1


@dataclass(slots=True, eq=False)
class Run:
    """One execution of one input: the line that a test function would append to its effects file."""

    call: str
    index: int
    attempt: int
    container: str
    node: str
    started_at: float
    agent: object
    """The agent's life in which it began."""
    ended_at: float | None = None
    ended: str = ""
    """ok, raised, cancelled, lost; empty while it runs."""


@dataclass(slots=True)
class Effects:
    """What user code has really done, from the view of somebody who stands beside it."""

    loop: SimLoop
    runs: list[Run] = field(default_factory=list)
    by_input: dict[tuple[str, int], list[Run]] = field(default_factory=dict)
    on_start: Callable[[Run], None] | None = None
    on_stop: Callable[[SimContainer, str], None] | None = None
    on_container: Callable[[SimContainer], None] | None = None
    live: dict[str, SimContainer] = field(default_factory=dict)

    def begin(self, request: InputRequest, container: SimContainer) -> Run:
        now = self.loop.time()
        run = Run(
            request.call, request.index, request.attempt, container.id, container.backend.node, now, container.backend
        )
        self.runs.append(run)
        self.by_input.setdefault((run.call, run.index), []).append(run)
        if self.on_start is not None:
            self.on_start(run)
        return run


class SimContainer:
    """A container whose code does what the payloads say."""

    how = "fresh"
    why = ""
    pid = 1
    phases: tuple[Phase, ...] = ()

    def __init__(self, request: ContainerRequest, backend: SimBackend) -> None:
        self.id = request.container_id
        self.function_id = request.function_id
        self.backend = backend
        self.scratch = self.incoming = Path("/nowhere")
        self.process = Process(backend.effects.loop, f"container {self.id[-6:]}")
        self.started_at = backend.effects.loop.time()
        self.exit: Exit | None = None
        self._ended: asyncio.Future[Exit] = backend.effects.loop.create_future()
        self._running: dict[tuple[str, int], tuple[Run, asyncio.Future[End], Any]] = {}
        backend.effects.live[self.id] = self
        if backend.effects.on_container is not None:
            backend.effects.on_container(self)

    @property
    def running(self) -> frozenset[tuple[str, int]]:
        return frozenset(self._running)

    def busy_since(self) -> list[float]:
        """When each of its inputs began."""
        return [run.started_at for run, _, _ in self._running.values()]

    async def run(self, request: InputRequest, on_item: Any = None, on_begin: Any = None) -> End | NotBegun:
        loop = self.backend.effects.loop
        future: asyncio.Future[End] = loop.create_future()
        if self.exit is not None:
            return NotBegun(exit=self.exit)
        on_begin()
        run = self.backend.effects.begin(request, self)
        plan = json.loads(request.payload or b"{}")
        earlier = [each for each in self.backend.effects.by_input[run.call, run.index] if each is not run]
        does = self._what(plan, sum(each.ended in ("raised", "lost") for each in earlier))
        timer = self.process.call_at(loop.time() + plan.get("run_s", 0.01), self._over, run, does)
        key = (request.call, request.index)
        self._running[key] = (run, future, timer)
        return await future

    def _what(self, plan: dict[str, Any], failed: int) -> str:
        if failed < plan.get("fails", 0):
            return "raised"
        if failed < plan.get("fails", 0) + plan.get("crashes", 0):
            return "crash"
        return "hang" if plan.get("hangs") else "ok"

    def _over(self, run: Run, does: str) -> None:
        if does == "crash":
            self.kill("exited with code 3")
        elif does != "hang":
            self._end(run, does)

    def _end(self, run: Run, ended: str) -> None:
        key = (run.call, run.index)
        running = self._running.get(key)
        if running is None or running[0] is not run:  # it has ended, and may run again by now
            return
        _, future, timer = self._running.pop(key)
        timer.cancel()
        now = self.backend.effects.loop.time()
        run.ended_at, run.ended = now, ended
        if future.done():
            return
        match ended:
            case "ok":
                payload = f"{run.call}.{run.index}".encode()
                future.set_result(
                    Output(encoding=Encoding.PICKLE, payload=payload, size=len(payload), started_ns=1, ended_ns=1)
                )
            case "lost":
                assert self.exit is not None
                future.set_result(Lost(exit=self.exit))
            case _:
                kind = FailureKind.CANCELLED if ended == "cancelled" else FailureKind.USER
                future.set_result(
                    Failed(kind=kind, type_name="ValueError", module="builtins", message=ended, traceback="")
                )

    @property
    def disk_mib(self) -> int:
        return 0

    @property
    def lines_up(self) -> bool:
        return False

    def recall(self) -> None:
        """Nothing waits in line."""

    def credit(self, call: str, index: int, n: int) -> None:
        """Nothing here is a generator."""

    def cancel(self, call: str, index: int) -> None:
        """Code that listens stops after a moment; code that does not goes on."""
        running = self._running.get((call, index))
        if running is not None and not self.backend.rng.random() < self.backend.deaf:
            self.process.call_at(self.backend.effects.loop.time() + 0.01, self._end, running[0], "cancelled")

    def when_enough(self, tell: Callable[[], None]) -> None:
        """Its code never says so."""

    async def drain(self) -> None:
        raise NotImplementedError("the agent counts for itself")

    async def stop(self, grace_s: float = 30.0, commit_s: float = 0.0) -> Exit:
        if self.backend.effects.on_stop is not None:
            self.backend.effects.on_stop(self, "stop")
        self._exit("stopped")
        assert self.exit is not None
        return self.exit

    def kill(self, reason: str = "killed") -> None:
        if self.exit is None and self.backend.effects.on_stop is not None:
            self.backend.effects.on_stop(self, reason)
        self._exit(reason)

    def _exit(self, reason: str) -> None:
        if self.exit is not None:
            return
        self.exit = Exit(code=0, signal=None, reason=reason)
        self.backend.effects.live.pop(self.id, None)
        for run, _, _ in list(self._running.values()):
            self._end(run, "lost")
        if not self._ended.done():
            self._ended.set_result(self.exit)

    async def wait(self) -> Exit:
        return await asyncio.shield(self._ended)


class SimBackend:
    """Makes containers on one node."""

    def __init__(self, node: str, effects: Effects, rng: random.Random, *, start_s: float, broken: float) -> None:
        self.node = node
        self.effects = effects
        self.rng = rng
        self.start_s = start_s
        self.broken = broken
        """Share of starts that fail."""
        self.deaf = 0.0
        """Share of inputs that do not listen to a cancel."""
        self.containers: list[SimContainer] = []

    async def probe(self) -> Capabilities:
        return Capabilities(
            backend="process",
            isolation=Isolation.PROCESS,
            python_versions=(),
            mount_namespaces=False,
            huge_pages=False,
        )

    def images(self) -> tuple[str, ...]:
        return ()

    async def sweep_images(self, now: float) -> None: ...

    async def prune_images(self, unwanted: Unwanted, now: float, *, dry_run: bool) -> Freed:
        return Freed((), (), 0, 0)

    async def start(self, request: ContainerRequest, on_log: Any) -> SimContainer:
        await asyncio.sleep(self.rng.uniform(0.2, 1.8) * self.start_s)
        if self.rng.random() < self.broken:
            raise StartFailed(StartFailureKind.INFRA, "the machine is in a bad mood")
        container = SimContainer(request, self)
        self.containers.append(container)
        return container

    async def close(self) -> None:
        self.end_all("the agent is gone")

    def end_all(self, reason: str) -> None:
        """As the kernel does when the agent dies."""
        for container in self.containers:
            container._exit(reason)
