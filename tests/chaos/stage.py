"""The stage of seeded bugs: a platform whose services can be given a bug, what is played on it, and the evidence."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

from tests.support.failpoints import FailPoints, gone
from tests.support.platform import SQUALL, Part, Platform, eventually, process

import squall
from squall.config import ServerAddress
from squall_bus import connect
from squall_contracts import topology
from squall_verify import collecting, files, settling, stepping, ticking, watching
from squall_verify.client import Caller, Elsewhere, Log
from squall_verify.evidence import Effect, Evidence, Happened, Key
from squall_verify.faults.registry import Given, Site, node_name
from squall_verify.processes import ancestors
from squall_verify.run import PROGRAM
from squall_verify.state import State
from squall_verify.stepping import StepLog, name_of_log

BUGS = Path(__file__).parent / "bugs"
EXTRA = Path(__file__).parent / "programs" / "dying.py"
TICKING = EXTRA.with_name("ticking.py")
AGENT_POINTS = "gpu-agent"
OF_THE_TOPOLOGY = ("unconditional-write",)
"""Bugs that show when streams are made or changed."""
ENSURE = """
import asyncio, sys
from squall_bus import BusSettings, connect
from squall_contracts import topology

async def ensure():
    settings = BusSettings(url=sys.argv[1], user=sys.argv[2], password=sys.argv[3], inbox_prefix=sys.argv[4])
    async with connect(settings, topology.build()) as bus:
        await bus.ensure_topology()

asyncio.run(ensure())
"""
"""What a platform does when it starts."""
WAIT_S = 20.0
REDELIVERED_S = 14.0
"""A lease, the time of a poll, and a busy machine."""


@dataclass
class Stage:
    """One platform, for one scenario after the other."""

    platform: Platform
    points: FailPoints
    bugs: Path
    folder: Path
    watcher: watching.Watcher
    known: set[Key] = field(default_factory=set)
    """Inputs of earlier scenarios."""
    number: int = 0

    def play(self, scenario: Callable[[Scenario], None], bug: str = "") -> Evidence:
        """Play it, with a bug or without, and hand over what there is to see of it."""
        self.number += 1
        logs = self.folder / f"play-{self.number}"
        logs.mkdir()
        since = time.time()
        scene = Scenario(self, logs)
        self._switch(bug, on=True)
        try:
            scenario(scene)
            evidence = self._evidence(scene, since)
        finally:
            self._switch(bug, on=False)
            scene.end()
        self.known |= {each.key for each in evidence.accepted}
        return evidence

    def _switch(self, bug: str, *, on: bool) -> None:
        if bug and on:
            (self.bugs / bug).touch()
        elif bug:
            (self.bugs / bug).unlink()
        if bug in OF_THE_TOPOLOGY:
            self._ensure_topology()

    def _ensure_topology(self) -> None:
        bus = self.platform.bus_settings()
        subprocess.run(
            [sys.executable, "-c", ENSURE, bus.url, bus.user or "", bus.password or "", bus.inbox_prefix],
            env=self.platform.neutral_environment() | seeded(self.bugs),
            check=True,
            timeout=30,
        )

    def _evidence(self, scene: Scenario, since: float) -> Evidence:
        laws = asyncio.run(collecting.laws(self.platform, {}, scene.paused_at))
        accepted = tuple(each for each in laws.accepted if each.key not in self.known)
        refs = {each.blob for each in accepted} | {each.blob for each in laws.recorded if each.key not in self.known}
        return replace(
            laws,
            accepted=accepted,
            recorded=tuple(each for each in laws.recorded if each.key not in self.known),
            counted=tuple(each for each in laws.counted if each.key not in self.known),
            told=tuple(each for each in laws.told if (each.call, each.index) not in self.known),
            used=tuple(each for each in laws.used if (each.call, each.index) not in self.known),
            effects=tuple(each for each in files.effects(self.effects) if each.key not in self.known),
            blobs={ref: state for ref, state in laws.blobs.items() if ref in refs},
            letters=tuple(key for key in laws.letters if key not in self.known),
            seen=files.seen(scene.logs),
            state=self._state(scene, laws.state, since),
            happened=tuple(scene.happened),
            samples=tuple(sample for sample in self.watcher.samples if sample.at > since + 1.0),
        )

    def _state(self, scene: Scenario, found: State, since: float) -> State:
        """Of schedules only those that this scenario has declared."""
        web_runs = tuple(run for run in files.web_runs(self.effects) if run.at >= since)
        schedules = tuple(each for each in found.schedules if each.schedule in scene.paused_at)
        return State(steps=stepping.steps(scene.logs), web_runs=web_runs, schedules=schedules)

    @property
    def effects(self) -> Path:
        return self.folder / "effects"

    def settled(self) -> bool:
        """Nothing is queued or leased, and everything has its result."""

        async def look() -> bool:
            async with connect(self.platform.bus_settings(), topology.build()) as bus:
                return not await settling.unended(bus)

        return asyncio.run(look())


@dataclass
class Scenario:
    """What a scenario can do."""

    stage: Stage
    logs: Path
    happened: list[Happened] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    paused_at: dict[str, float] = field(default_factory=dict)
    """Schedules that were declared while this was played."""

    def __post_init__(self) -> None:
        gateways = self.stage.platform.parts_named("gateway")
        steps = StepLog(self.logs / name_of_log(0))
        log, objects = Log(self.logs / "client-0.jsonl"), f"verify-{self.logs.name}"
        self.caller = Caller(log, steps, Elsewhere(gateways[-1].url, receiver=""), objects=objects)
        # Looked up once: with the bus away nobody could begin anything otherwise.
        self.caller._function = cache(self.caller._function)  # type: ignore[method-assign]

    # ------------------------------------------------------------------ calls

    def begin(self, form: str, **given: Any) -> str:
        """One operation of the harness's caller, in a thread of its own; its id."""
        op = f"{self.logs.name}-{next(self.numbers)}"
        operation = {"id": op, "form": form, "given": given}
        thread = threading.Thread(target=self.caller.carry_out, args=(operation,), daemon=True, name=op)
        self.threads.append(thread)
        thread.start()
        return op

    def wait(self, within_s: float = WAIT_S) -> None:
        """Until every operation has its answer, or the time is over."""
        until = time.monotonic() + within_s
        for thread in list(self.threads):
            thread.join(max(0.0, until - time.monotonic()))

    def executions(self, op: str, what: str = "start") -> list[Effect]:
        """Lines of that kind of an operation."""
        return [each for each in files.effects(self.stage.effects) if each.op == op and each.what == what]

    def await_executions(self, op: str, count: int, what: str = "start", within_s: float = WAIT_S) -> list[Effect]:
        """Until there are so many; fails if there are never."""
        return eventually(
            lambda: found if len(found := self.executions(op, what)) >= count else [],
            within_s=within_s,
            what=lambda: f"{count} x {what} of {op}; there are {self.executions(op, what)}",
        )

    def until(self, condition: Callable[[], object], within_s: float) -> None:
        """A while, ended early when the condition holds. With the bug it may never."""
        with suppress(Exception):
            eventually(condition, within_s=within_s)

    def tick(self, for_s: float) -> None:
        """A program with a schedule is deployed, and stopped a while later."""
        platform = self.stage.platform
        paused = ticking.pause(self.address)
        deploy(platform, TICKING, self.stage.effects)
        time.sleep(for_s)
        self.paused_at = {name: at for name, at in ticking.pause(self.address).items() if name not in paused}

    @property
    def address(self) -> ServerAddress:
        return ServerAddress(self.stage.platform.url, self.stage.platform.token)

    def settle(self, within_s: float = REDELIVERED_S) -> None:
        """Until nothing is queued or leased."""
        self.until(self.stage.settled, within_s)

    def agent_of(self, effect: Effect) -> Part:
        """The agent under which an execution runs."""
        agents = {part.pid: part for part in self.stage.platform.parts_named("gpu-agent")}
        container = process(effect.pid)
        assert container is not None, f"{effect} has ended"
        return next(agents[above.pid] for above in ancestors(container) if above.pid in agents)

    # ------------------------------------------------------------------ faults

    def dies_at(self, point: str, agent: Part) -> None:
        """The agent will kill itself there; waits until it has."""
        self.stage.points.arm(f"{point}=kill", agent)
        eventually(lambda: gone(agent), within_s=WAIT_S, what=f"{agent.name} does not die at {point}")
        self._happened("kill-agent", agent, time.time())

    @contextmanager
    def paused(self, agent: Part, at_least_s: float) -> Iterator[None]:
        """The agent stands still while the block runs, and so long at least."""
        began = time.time()
        os.kill(agent.pid, SIGSTOP)
        try:
            yield
            threading.Event().wait(max(0.0, began + at_least_s - time.time()))
        finally:
            os.kill(agent.pid, SIGCONT)
            self._happened("pause-agent", agent, began)

    def inject(self, fault: Callable[[Site, Given], Any], given: Given) -> None:
        """One of the harness's own faults, healed at once."""
        with fault(Site(self.stage.platform, self.logs), given):
            pass

    def hurt(self, name: str, victim: str, began: float) -> None:
        """Something else was hurt."""
        self.happened.append(Happened(name=name, began=began, ended=time.time(), victim=victim))

    def _happened(self, name: str, agent: Part, began: float) -> None:
        self.happened.append(
            Happened(name=name, began=began, ended=time.time(), victim=agent.name, node=node_name(agent), pid=agent.pid)
        )

    def end(self) -> None:
        """What the bug has left open is cancelled, so that the next scenario finds nothing of it."""
        for line in files.seen(self.logs):
            if line.what == "ack" and any(thread.is_alive() and thread.name == line.op for thread in self.threads):
                with suppress(squall.Error):
                    squall.FunctionCall.from_id(line.call).cancel()
        self.wait(WAIT_S)
        eventually(lambda: len(self.stage.platform.parts_named("gpu-agent")) == 2, within_s=WAIT_S)


def deploy(platform: Platform, program: Path, effects: Path) -> None:
    """A program whose executions write to the effects file."""
    child = platform.popen(SQUALL, "deploy", program, VERIFY_EFFECTS=str(effects), VERIFY_VERSION="1")
    out, err = child.communicate(timeout=90)
    assert child.returncode == 0, out + err


def seeded(bugs: Path) -> dict[str, str]:
    """Environment of processes that shall have the bugs that are on in that folder."""
    return {"PYTHONPATH": str(BUGS), "SEEDED_BUGS": str(bugs)}


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """A platform of two agents and two gateways with every seeded bug in it, all of them off."""
    points, bugs = folder / "points", folder / "bugs"
    points.mkdir()
    bugs.mkdir()
    (bugs / "harness").write_text(str(os.getpid()))
    armed = FailPoints(points)
    environment = {**armed.environment, **seeded(bugs)}
    (folder / "effects").touch()
    with Platform(processes=True, agents=2, gateways=2, environment=environment) as platform:
        deploy(platform, PROGRAM, folder / "effects")
        deploy(platform, EXTRA, folder / "effects")
        ticking.pause(ServerAddress(platform.url, platform.token))
        watcher = watching.Watcher(platform.bus_settings)
        thread = threading.Thread(target=watcher.run)
        thread.start()
        try:
            yield Stage(platform, armed, bugs, folder, watcher)
        finally:
            watcher.stop()
            thread.join()
