"""SIGKILL to each of three nats-servers that replicate, leaders and followers alike, while calls are accepted."""

from __future__ import annotations

from collections.abc import Iterator
from signal import SIGKILL

import pytest
from tests.chaos.conftest import PROGRAMS
from tests.chaos.victims import Effects, function, results
from tests.support.platform import Platform

EACH = 40


@pytest.fixture(scope="module")
def shared() -> Iterator[Platform]:
    with Platform(processes=True, agents=2, gateways=2, bus_servers=3) as platform:
        platform.squall("deploy", PROGRAMS / "work.py")
        yield platform


def test_each_server_of_a_cluster_while_calls_are_accepted(platform: Platform, effects: Effects) -> None:
    evaluate = function("evaluate")
    calls = []
    for name in ("bus", "bus-1", "bus-2"):
        victim = platform.signal(name, SIGKILL)
        calls += [evaluate.spawn(str(effects.file), len(calls) + number) for number in range(EACH)]
        platform.restarted(victim)
        assert results(calls) == [(value, value * value) for value in range(len(calls))]

    assert {int(line) for line in effects.lines()} == set(range(3 * EACH))
