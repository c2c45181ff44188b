"""What user functions of chaos tests did, and which processes did it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.support.platform import Part, Platform, Process, ancestors, eventually, process

import squall

STARTS_S = 30.0
RESULTS_S = 60.0
"""Longer than a lease, a back-off of the supervisor and a cold start together."""


def function(name: str) -> squall.Function:
    """A function of the program that chaos tests deploy."""
    return squall.Function.from_name("chaos", name)


def spawn_held(effects: Effects, count: int) -> list[squall.FunctionCall]:
    """So many calls that stay in their middle until the gate opens; the result of number n is n * n."""
    work = function("work")
    return [work.spawn(*effects.arguments, value) for value in range(count)]


def results(calls: list[squall.FunctionCall]) -> list[object]:
    """Of each call, in order."""
    return [call.get(timeout=RESULTS_S) for call in calls]


class Effects:
    """The file to which functions append, and the gate that keeps them in the middle of a call."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "effects"
        self.gate = folder / "gate"
        self.file.touch()

    @property
    def arguments(self) -> tuple[str, str]:
        """What functions take first."""
        return str(self.file), str(self.gate)

    def lines(self) -> list[str]:
        return self.file.read_text().splitlines()

    def open_gate(self) -> None:
        self.gate.touch()

    def counts(self, what: str) -> Counter[int]:
        """How often each value was "started" or "finished"."""
        return Counter(int(line.split()[1]) for line in self.lines() if line.startswith(what))

    def wait_for_ends(self) -> None:
        """Until the containers that have started something until now are gone: they notice their agent's end late."""
        pids = {int(line.split()[2]) for line in self.lines() if line.startswith("started")}

        def alive() -> list[int]:
            return [pid for pid in pids if (found := process(pid)) is not None and found.state != "Z"]

        eventually(lambda: not alive(), within_s=STARTS_S, what=lambda: f"the end of {alive()}")

    def wait_for_starts(self, at_least: int) -> list[Process]:
        """The containers that are in the middle of a call, once so many calls have started."""
        eventually(
            lambda: len([line for line in self.lines() if line.startswith("started")]) >= at_least,
            within_s=STARTS_S,
            what=lambda: f"{at_least} starts; there are {self.lines()}",
        )
        finished = {line.split()[1] for line in self.lines() if line.startswith("finished")}
        running = [line.split() for line in self.lines() if line.startswith("started")]
        found = [process(int(pid)) for _, value, pid in running if value not in finished]
        return [p for p in found if p is not None]


def agent_of(container: Process, platform: Platform) -> Part:
    """The agent under which a container runs."""
    agents = {part.pid: part for part in platform.parts_named("gpu-agent")}
    return next(agents[above.pid] for above in ancestors(container) if above.pid in agents)


def template_of(container: Process) -> Process | None:
    """The template that a container was forked from; None for one that was started fresh."""
    return next((above for above in ancestors(container) if above.is_runner), None)
