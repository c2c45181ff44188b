"""A seeded mix of kills and pauses of every part while calls of every kind are made: safety afterwards, then liveness.

The seed is printed; `CHAOS_SEED=n` runs it again, `CHAOS_SECONDS=n` makes it longer.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest
from tests.chaos.conftest import PROGRAMS, started
from tests.chaos.victims import Effects, function
from tests.support.platform import Platform

import squall

SECONDS = float(os.environ.get("CHAOS_SECONDS", "30"))
PAUSE_S = (0.5, 2.5)
"""Between faults."""
SETTLED_S = 90.0
MAP_INPUTS = 200


@pytest.fixture(scope="module")
def shared() -> Iterator[Platform]:
    """Of this module alone."""
    with started() as platform:
        platform.squall("deploy", PROGRAMS / "work.py")
        yield platform


class Nemesis:
    """Hurts one part after the other until it is told to stop. Every pause is taken back."""

    def __init__(self, platform: Platform, dice: random.Random) -> None:
        self._platform = platform
        self._dice = dice
        self.done: list[str] = []

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            fault = self._dice.choices([self._kill, self._kill_container, self._stop_for_a_while], [6, 2, 2])[0]
            fault()
            threading.Event().wait(self._dice.uniform(*PAUSE_S))

    def _kill(self) -> None:
        part = self._dice.choice(self._platform.parts())
        self._signal(part.pid, SIGKILL, f"kill {part.name}")

    def _kill_container(self) -> None:
        if runners := self._platform.runners():
            self._signal(self._dice.choice(runners).pid, SIGKILL, "kill a runner")

    def _stop_for_a_while(self) -> None:
        part = self._dice.choice(self._platform.parts())
        self._signal(part.pid, SIGSTOP, f"stop {part.name}")
        threading.Event().wait(self._dice.uniform(0.2, 3.0))
        self._signal(part.pid, SIGCONT, "")

    def _signal(self, pid: int, which: int, what: str) -> None:
        try:
            os.kill(pid, which)
        except ProcessLookupError:
            return
        if what:
            self.done.append(what)


def make_calls(effects: Effects, stop: threading.Event) -> list[tuple[squall.FunctionCall, int]]:
    """Spawn until told to stop; what was acknowledged, with what it must answer."""
    evaluate, acknowledged, value = function("evaluate"), [], 0
    while not stop.is_set():
        acknowledged.append((evaluate.spawn(str(effects.file), value), value))
        value += 1
        stop.wait(0.02)
    return acknowledged


def make_maps(stop: threading.Event) -> int:
    """Maps, one after the other; how many gave every result once and in order."""
    rounds = 0
    while not stop.is_set():
        assert list(function("quick").map(range(MAP_INPUTS))) == [value + 1 for value in range(MAP_INPUTS)]
        rounds += 1
    return rounds


def make_remotes(stop: threading.Event) -> int:
    count = 0
    while not stop.is_set():
        assert function("quick").remote(count) == count + 1
        count += 1
        stop.wait(0.02)
    return count


@pytest.mark.timeout(300)
def test_every_acknowledged_call_ends_once(platform: Platform, effects: Effects) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(10**6))
    nemesis = Nemesis(platform, random.Random(seed))
    stop = threading.Event()
    with ThreadPoolExecutor(3) as threads:
        users: list[Callable[[], object]] = [
            lambda: make_calls(effects, stop),
            lambda: make_maps(stop),
            lambda: make_remotes(stop),
        ]
        spawning, mapping, calling = (threads.submit(user) for user in users)
        try:
            nemesis.run(SECONDS)
        finally:
            stop.set()
            print(f"CHAOS_SEED={seed}: {', '.join(nemesis.done)}")
        acknowledged = spawning.result(SETTLED_S)
        rounds, remotes = mapping.result(SETTLED_S), calling.result(SETTLED_S)

    for call, value in acknowledged:  # type: ignore[attr-defined]
        assert call.get(timeout=SETTLED_S) == (value, value * value)
    executed = {int(line) for line in effects.lines()}
    assert executed == set(range(len(acknowledged)))  # type: ignore[arg-type]
    assert rounds
    assert remotes
    print(f"{len(nemesis.done)} faults, {len(executed)} spawned, {remotes} remote, {rounds} maps")
