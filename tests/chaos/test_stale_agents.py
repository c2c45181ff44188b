"""A stale agent: it stood still past its leases, another one runs what it had, and then it goes on. It may record a
success, and nothing else: it must not nak, fail or time out what is no longer its own, nor begin it."""

from __future__ import annotations

import asyncio
import time
from signal import SIGCONT, SIGSTOP

import pytest
from tests.chaos import invariants
from tests.chaos.armed import Scene
from tests.chaos.victims import RESULTS_S, Effects, agent_of, function
from tests.support.platform import Part, eventually, process

import squall
from squall.ids import shard_of
from squall_bus import connect
from squall_contracts import subjects, topology
from squall_contracts.calls import AttemptFailed, CallEvent

LEASE_S = 8.0
TIMEOUT_S = 14.0
"""Of the function `turns`."""
FIRST = ("return", "raise", "stay")
"""What the first execution does, the one that becomes stale. One that stays reaches its timeout."""
EACH = 4
TAKEN_OVER_S = LEASE_S + 20.0


@pytest.mark.timeout(180)
def test_an_agent_that_was_paused_with_calls_of_every_kind(scene: Scene, effects: Effects) -> None:
    calls = {
        f"{first}{number}": function("turns").spawn(str(effects.file.parent), f"{first}{number}", first)
        for number in range(EACH)
        for first in FIRST
    }
    began = time.monotonic()
    doomed = eventually(lambda: held_by_one(scene, effects), within_s=30, what=effects.lines)
    victim = scene.platform.signal(doomed.agent, SIGSTOP)
    try:
        eventually(lambda: doomed.values <= started(effects, 1), within_s=TAKEN_OVER_S, what=effects.lines)
        (effects.file.parent / "gate-0").touch()
        eventually(lambda: time.monotonic() > began + TIMEOUT_S + 1.0, within_s=TIMEOUT_S)
    finally:
        scene.platform.signal(victim.name, SIGCONT)
    late = {value for value in doomed.values if not value.startswith("return")}
    eventually(
        lambda: late <= told(scene, calls, "abandoned"), within_s=8, what=lambda: f"{told(scene, calls, 'abandoned')}"
    )
    (effects.file.parent / "gate-1").touch()

    for value in doomed.values:
        # A stale success may be the first result; of the others nothing may be seen but that they were lost.
        assert calls[value].get(timeout=RESULTS_S) in ((0, 1) if value.startswith("return") else (1,)), value
        assert counted(scene, calls[value]) <= {"infra"}, value
    assert not started(effects, 2) & doomed.values, f"a stale nak brought a call back: {effects.lines()}"


class Doomed:
    """What one agent has in its hands."""

    def __init__(self, agent: str, values: set[str]) -> None:
        self.agent = agent
        self.values = values


def held_by_one(scene: Scene, effects: Effects) -> Doomed | None:
    """An agent that runs at least one call of each kind, once all have started."""
    lines = [line.split() for line in effects.lines()]
    if len(lines) < EACH * len(FIRST):
        return None
    held: dict[str, set[str]] = {}
    for _, value, pid, _ in lines:
        container = process(int(pid))
        if container is not None:
            held.setdefault(agent_of(container, scene.platform).name, set()).add(value)
    for agent, values in held.items():
        if all(any(value.startswith(first) for value in values) for first in FIRST):
            return Doomed(agent, values)
    return None


def started(effects: Effects, turn: int) -> set[str]:
    """Values whose execution of that number has begun."""
    return {line.split()[1] for line in effects.lines() if line.startswith("started") and line.endswith(f" {turn}")}


def told(scene: Scene, calls: dict[str, squall.FunctionCall], event: str) -> set[str]:
    """Values of which this has been told in EVENTS."""
    return {value for value, call in calls.items() if event in asyncio.run(events(scene, call.object_id))}


async def events(scene: Scene, call: str) -> list[str]:
    async with connect(scene.platform.bus_settings(), topology.build()) as bus:
        stream = subjects.events_stream(invariants.REGION, shard_of(call))
        wanted = f"events.{invariants.REGION}.{shard_of(call):02d}.*.{call}.0"
        return [CallEvent.decode(stored.data).event async for stored in bus.read(stream, wanted)]


def counted(scene: Scene, call: squall.FunctionCall) -> set[str]:
    """Kinds of failure that were counted."""

    async def read() -> set[str]:
        async with connect(scene.platform.bus_settings(), topology.build()) as bus:
            shard = shard_of(call.object_id)
            stream = subjects.attempts_stream(invariants.REGION, shard)
            wanted = f"attempts.{invariants.REGION}.{shard:02d}.*.{call.object_id}.0"
            return {AttemptFailed.decode(stored.data).kind async for stored in bus.read(stream, wanted)}

    return asyncio.run(read())


# ---------------------------------------------------------------------- stopped at one step


def stopped_at(scene: Scene, step: str, agents: list[Part]) -> Part:
    """The agent that stopped itself there; the others are disarmed."""
    stopped = eventually(
        lambda: [part for part in agents if (found := process(part.pid)) and found.state == "T"][:1],
        within_s=20,
        what=f"nobody stopped at {step}",
    )
    scene.points.arm("", *(part for part in agents if part not in stopped))
    return stopped[0]


@pytest.mark.parametrize("step", ["agent.delivered", "agent.history_read"])
def test_what_another_agent_has_run_is_not_begun(scene: Scene, effects: Effects, step: str) -> None:
    effects.open_gate()
    agents = scene.warm_agents(effects)
    scene.points.arm(f"{step}=stop", *agents)
    value, result = scene.call("spawn", "work", effects)
    victim = stopped_at(scene, step, agents)
    try:
        assert result.result(RESULTS_S) == value * value
    finally:
        scene.platform.signal(victim.name, SIGCONT)

    eventually(lambda: effects.counts("finished")[value] == 1)
    assert function("work").remote(*effects.arguments, 1000) == 1000 * 1000
    scene.expect(effects, value, range(1, 2))


@pytest.mark.parametrize(
    ("step", "name", "executions"),
    [
        ("agent.recorded", "work", 1),
        ("agent.replied", "work", 1),
        ("agent.counted", "failing", 2),
    ],
)
def test_what_was_written_before_the_pause_counts_once(
    scene: Scene, effects: Effects, step: str, name: str, executions: int
) -> None:
    value, result = scene.call("spawn", name, effects)
    agent = agent_of(effects.wait_for_starts(1)[0], scene.platform)
    scene.points.arm(f"{step}=stop", agent)
    effects.open_gate()
    victim = stopped_at(scene, step, [agent])
    try:
        if name == "failing":
            with pytest.raises(ValueError, match=str(value)):
                result.result(RESULTS_S)
        else:
            assert result.result(RESULTS_S) == value * value
            settled(scene)
    finally:
        scene.platform.signal(victim.name, SIGCONT)
    settled(scene)
    scene.expect(effects, value, range(executions, executions + 1))


def settled(scene: Scene) -> None:
    """Nothing is queued or leased any more."""

    async def look() -> bool:
        async with connect(scene.platform.bus_settings(), topology.build()) as bus:
            return not await invariants.unsettled(bus)

    eventually(lambda: asyncio.run(look()), within_s=20, what="a queue is not empty")
