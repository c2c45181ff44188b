"""SIGKILL to nats-server, and to everything at once: it comes back on the same store with every acknowledged call."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from signal import SIGKILL

import pytest
from tests.chaos.conftest import PROGRAMS, started
from tests.chaos.victims import RESULTS_S, Effects, function, results, spawn_held
from tests.support.platform import Platform, belonging_to

import squall

DONE = 60
"""Calls that have ended before the fault, and must not run again."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Platform]:
    """Of this module alone: others would find calls of their own interrupted."""
    with started() as platform:
        platform.squall("deploy", PROGRAMS / "work.py")
        yield platform


def test_nats_server_in_the_middle_of_calls(platform: Platform, effects: Effects) -> None:
    calls = spawn_held(effects, 10)
    effects.wait_for_starts(4)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(lambda: function("work").remote(*effects.arguments, 10))
        victim = platform.signal("bus", SIGKILL)
        effects.open_gate()

        assert results(calls) == [value * value for value in range(10)]
        assert waiting.result(RESULTS_S) == 100
    assert set(effects.counts("finished")) == set(range(11))
    platform.restarted(victim)
    assert function("quick").remote(1) == 2


def test_nats_server_while_calls_are_accepted(platform: Platform, effects: Effects) -> None:
    evaluate = function("evaluate")
    calls = []
    for value in range(200):
        calls.append(evaluate.spawn(str(effects.file), value))
        if value in (50, 120):
            victim = platform.signal("bus", SIGKILL)
            platform.restarted(victim)

    assert results(calls) == [(value, value * value) for value in range(200)]
    assert {int(line) for line in effects.lines()} == set(range(200))


def test_everything_at_once(platform: Platform, effects: Effects) -> None:
    once = effects.file.with_name("once")
    ended = [function("evaluate").spawn(str(once), value) for value in range(DONE)]
    assert results(ended) == [(value, value * value) for value in range(DONE)]
    calls = spawn_held(effects, 10)
    effects.wait_for_starts(4)

    platform.kill()
    platform.start()
    effects.open_gate()

    assert results(calls) == [value * value for value in range(10)]
    assert results(ended) == [(value, value * value) for value in range(DONE)]
    assert function("quick").remote(1) == 2
    # The queue may bring them back (it is not fsynced); who has a result is not run again.
    assert sorted(int(line) for line in once.read_text().splitlines()) == list(range(DONE))


def test_restart_of_every_service_and_of_nats_server(platform: Platform, effects: Effects) -> None:
    call = function("work").spawn(*effects.arguments, 12)
    effects.wait_for_starts(1)

    platform.stop()
    assert belonging_to(platform.folder) == []
    platform.start()

    assert function("quick").remote(41) == 42
    found = squall.FunctionCall.from_id(call.object_id)
    with pytest.raises(TimeoutError):
        found.get(timeout=0)
    effects.open_gate()
    assert found.get(timeout=RESULTS_S) == 144


def test_nothing_is_left_behind(platform: Platform) -> None:
    platform.stop()
    try:
        assert belonging_to(platform.folder) == []
        assert [path.name for path in platform.temporary.rglob("*")] == []
    finally:
        platform.start()
