"""Pools grow from zero, share the machines, and go back to zero."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tests.support.platform import Platform, eventually, process

import squall

pytestmark = pytest.mark.slow

WINDOW_S = 2
"""Of `shortly`."""


def function(name: str) -> squall.Function:
    return squall.Function.from_name("surface", name)


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def test_a_pool_goes_to_zero_and_comes_back(client: Platform) -> None:
    first = function("shortly").remote()
    assert process(first)

    eventually(lambda: process(first) is None, within_s=WINDOW_S + 6, what="it is still there")
    second = function("shortly").remote()

    assert second != first


def test_max_containers_holds_and_every_input_waits_its_turn(client: Platform, effects: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    calls = [function("hold").spawn(str(effects), str(gate), n) for n in range(6)]
    eventually(lambda: lines(effects), within_s=20, what="none started")

    gate.touch()

    assert squall.FunctionCall.gather(*calls) == list(range(6))
    running = 0
    for line in lines(effects):
        running += 1 if line.startswith("started") else -1
        assert running <= 1, "two at once with max_containers=1"


def test_a_backlog_that_fills_the_machine_makes_room_for_another_function(client: Platform) -> None:
    backlog = [function("half_of_the_machine").spawn(0.4) for _ in range(200)]
    containers: set[int] = set()
    while len(containers) < 2:
        containers.add(backlog.pop(0).get(timeout=20))

    assert function("the_other_half").remote() == "got room"

    with pytest.raises(TimeoutError):
        backlog[-1].get(timeout=0)
    for call in backlog:
        call.cancel()


def test_two_agents_share_the_work(client_of_several: Platform, effects: Path) -> None:
    pids = list(function("meet_apart").map([str(effects)] * 2, kwargs={"wanted": 2}))

    assert len(set(pids)) == 2


def test_a_second_gateway_serves_results_of_calls_taken_by_the_first(
    client_of_several: Platform, effects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = client_of_several.parts_named("gateway")
    gate = tmp_path / "gate"
    monkeypatch.setenv("SQUALL_SERVER_URL", first.url)
    call = function("hold").spawn(str(effects), str(gate), "shared")
    ended = function("square").spawn(12)

    monkeypatch.setenv("SQUALL_SERVER_URL", second.url)
    there, ended_there = (squall.FunctionCall.from_id(c.object_id) for c in (call, ended))
    answers: list[object] = []
    waiter = threading.Thread(target=lambda: answers.append(there.get(timeout=30)))
    waiter.start()
    gate.touch()
    waiter.join(40)

    assert answers == ["shared"]
    assert ended_there.get(timeout=10) == 144
