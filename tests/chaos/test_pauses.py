"""An agent that stops past its leases and goes on: its calls ran elsewhere, its late word changes nothing."""

from __future__ import annotations

from signal import SIGCONT, SIGSTOP

from tests.chaos.victims import Effects, agent_of, results, spawn_held
from tests.support.platform import Platform, eventually

LEASE_S = 8.0


def test_agent_stopped_past_its_leases(platform: Platform, effects: Effects) -> None:
    calls = spawn_held(effects, 6)
    containers = effects.wait_for_starts(4)
    victim = agent_of(containers[0], platform)
    held = sum(agent_of(c, platform) == victim for c in containers)
    before = sum(effects.counts("started").values())
    platform.signal(victim.name, SIGSTOP)
    try:
        # Every call that it held has been taken over by the other one: 8 s, and the time of a poll.
        eventually(
            lambda: sum(effects.counts("started").values()) >= before + held,
            within_s=LEASE_S + 20,
            what=lambda: f"not taken over: {effects.lines()}",
        )
        effects.open_gate()
        first = results(calls)
    finally:
        platform.signal(victim.name, SIGCONT)

    assert first == [value * value for value in range(6)]
    # The stale attempts finish too now; what was recorded first stays.
    eventually(lambda: effects.counts("finished") == effects.counts("started"), within_s=20, what=effects.lines)
    assert results(calls) == first
