"""A platform in which fail points can be armed, and what must be true of the executions that ran on it."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.victims import RESULTS_S, Effects, function
from tests.support.failpoints import FailPoints
from tests.support.platform import Part, Platform, eventually

Form = str
"""How a call is made: remote, spawn or map."""


@dataclass
class Scene:
    """One platform for all steps. What must be true of a call's executions is checked at its end, and at the end of
    all: what was not acknowledged to the queue has come back by then."""

    platform: Platform
    points: FailPoints
    threads: ThreadPoolExecutor
    expected: list[tuple[Effects, int, range]] = field(default_factory=list)
    value: int = 0

    def agents(self) -> list[Part]:
        """Both, running: one may have been killed by the step before."""
        return eventually(
            lambda: parts if len(parts := self.platform.parts_named("gpu-agent")) == 2 else None, what="an agent"
        )

    def warm_agents(self, effects: Effects) -> list[Part]:
        """Both agents, with containers of `work`: any of them may get the next call."""
        folder = effects.file.parent / "warm"
        folder.mkdir()
        other = Effects(folder)
        calls = [function("work").spawn(*other.arguments, number) for number in range(4)]
        other.wait_for_starts(4)
        other.open_gate()
        for call in calls:
            call.get(timeout=RESULTS_S)
        return self.agents()

    def call(self, form: Form, name: str, effects: Effects) -> tuple[int, Future[Any]]:
        """Begin a call; its value and what it will give."""
        self.value += 1
        value = self.value
        return value, self.threads.submit(make, form, name, effects, value)

    def expect(self, effects: Effects, value: int, executions: range) -> None:
        """So often the code of a call may have run to its end."""
        self.expected.append((effects, value, executions))
        self._check(effects, value, executions)

    def check_all(self) -> None:
        """Nothing ran again since."""
        for effects, value, executions in self.expected:
            self._check(effects, value, executions)

    def _check(self, effects: Effects, value: int, executions: range) -> None:
        count = effects.counts("finished")[value]
        assert count in executions, f"executed {count} times instead of {executions}: {effects.lines()}"


def make(form: Form, name: str, effects: Effects, value: int) -> Any:
    """One call of that form, to its result."""
    called, arguments = function(name), (*effects.arguments, value)
    match form:
        case "remote":
            return called.remote(*arguments)
        case "spawn":
            return called.spawn(*arguments).get(timeout=RESULTS_S)
        case "map":
            (answer,) = called.starmap([arguments])
            return answer
        case _:
            raise ValueError(form)
