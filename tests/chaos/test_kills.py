"""SIGKILL to one part after the other in the middle of calls: each acknowledged call ends once, with its own result."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGKILL

import pytest
from tests.chaos.conftest import PROGRAMS
from tests.chaos.victims import RESULTS_S, Effects, agent_of, function, results, spawn_held, template_of
from tests.support.platform import SQUALL, Platform, eventually, process

import squall


def test_agent(platform: Platform, effects: Effects) -> None:
    calls = spawn_held(effects, 8)
    containers = effects.wait_for_starts(4)
    victim = agent_of(containers[0], platform)
    doomed = [c for c in containers if agent_of(c, platform) == victim]

    platform.signal(victim.name, SIGKILL)

    eventually(lambda: not any(process(c.pid) for c in doomed), what="containers outlived their agent")
    effects.open_gate()
    assert results(calls) == [value * value for value in range(8)]
    assert set(effects.counts("finished")) == set(range(8))
    assert sum(effects.counts("started").values()) >= 8 + len(doomed), "the interrupted calls did not run again"
    platform.restarted(victim)


def test_container(platform: Platform, effects: Effects) -> None:
    calls = spawn_held(effects, 4)
    victim = effects.wait_for_starts(4)[0]

    victim.signal(SIGKILL)
    effects.wait_for_starts(5)
    effects.open_gate()

    assert results(calls) == [value * value for value in range(4)]
    assert effects.counts("finished") == dict.fromkeys(range(4), 1)


def test_template(platform: Platform, effects: Effects) -> None:
    calls = spawn_held(effects, 4)
    templates = [template for c in effects.wait_for_starts(4) if (template := template_of(c))]
    assert templates, "no container was forked from a template"

    templates[0].signal(SIGKILL)
    effects.open_gate()

    assert results(calls) == [value * value for value in range(4)]
    assert set(effects.counts("finished")) == set(range(4))
    assert function("cold_third").remote(5) == 35


def test_gateway_under_a_waiting_caller(platform: Platform, effects: Effects) -> None:
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(lambda: function("work").remote(*effects.arguments, 7))
        effects.wait_for_starts(1)

        victim = platform.signal(platform.front.name, SIGKILL)
        effects.open_gate()

        assert answer.result(RESULTS_S) == 49
    assert effects.counts("finished") == {7: 1}
    platform.restarted(victim)


def test_gateway_under_a_map(platform: Platform) -> None:
    quick = function("quick")
    received = []
    victim = platform.front
    for value in quick.map(range(600)):
        received.append(value)
        if len(received) == 150:
            platform.signal(platform.front.name, SIGKILL)

    assert received == [value + 1 for value in range(600)]
    platform.restarted(victim)


def test_gateway_while_calls_are_accepted(platform: Platform, effects: Effects) -> None:
    evaluate = function("evaluate")
    calls = []
    victim = platform.front
    for value in range(150):
        calls.append(evaluate.spawn(str(effects.file), value))
        if value == 40:
            platform.signal(platform.front.name, SIGKILL)

    assert results(calls) == [(value, value * value) for value in range(150)]
    assert len({call.object_id for call in calls}) == 150
    executed = [int(line) for line in effects.lines()]
    assert sorted(executed) == list(range(150)), "a repeated request made a second call"
    platform.restarted(victim)


@pytest.mark.parametrize(("service", "name"), [("scheduler", "cold"), ("autoscaler", "cold_too")])
def test_control_plane_before_a_cold_call(platform: Platform, service: str, name: str) -> None:
    victim = platform.signal(service, SIGKILL)

    answer = function(name).remote(10)

    assert answer == {"cold": 30, "cold_too": 50}[name]
    platform.restarted(victim)


def test_builder_in_the_middle_of_a_build(platform: Platform, tmp_path: Path) -> None:
    package = tmp_path / "gated"
    package.mkdir()
    (package / "gated_backend.py").write_text((PROGRAMS / "gated_backend.py").read_text())
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "gated_backend"\nbackend-path = ["."]\n'
    )
    deploying = platform.popen(SQUALL, "deploy", PROGRAMS / "slow_image.py", GATED_PACKAGE=str(package))
    eventually((package / "builds").exists, within_s=30, what="the build never began")

    victim = platform.signal("builder", SIGKILL)
    platform.restarted(victim)
    (package / "gate").touch()

    out, err = deploying.communicate(timeout=RESULTS_S)
    assert deploying.returncode == 0, out + err
    assert squall.Function.from_name("slow-image", "answer").remote() == 42


def test_generator_of_a_killed_gateway_is_not_silently_repeated(platform: Platform, effects: Effects) -> None:
    items = function("stream").remote_gen(*effects.arguments, 20)
    received = [next(items) for _ in range(10)]

    victim = platform.signal(platform.front.name, SIGKILL)
    effects.open_gate()
    try:
        received += list(items)
    except squall.Error:
        pass  # it may say that items were lost or that the generator began anew, and must not repeat any

    assert received == list(range(len(received)))
    platform.restarted(victim)
