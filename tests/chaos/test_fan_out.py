"""The eval fan-out: 2,000 inputs over .map() while one of two agents is killed."""

from __future__ import annotations

from signal import SIGKILL

import pytest
from tests.chaos.victims import Effects, function
from tests.support.platform import Part, Platform, descendants

INPUTS = 2000
KILL_AT = 500


@pytest.mark.timeout(180)
def test_no_result_is_lost_repeated_or_reordered(platform: Platform, effects: Effects) -> None:
    evaluate = function("evaluate")
    received = []
    victim = None

    for answer in evaluate.map([str(effects.file)] * INPUTS, range(INPUTS)):
        received.append(answer)
        if len(received) == KILL_AT:
            victim = busiest_agent(platform)
            platform.signal(victim.name, SIGKILL)

    assert received == [(value, value * value) for value in range(INPUTS)]
    executed = [int(line) for line in effects.lines()]
    assert set(executed) == set(range(INPUTS))
    # What the dead agent had leased runs again; what had a result does not.
    assert len(executed) < INPUTS * 1.2
    assert victim
    platform.restarted(victim)


def busiest_agent(platform: Platform) -> Part:
    """The agent with the most containers."""
    agents = platform.parts_named("gpu-agent")
    containers = {agent: sum(child.is_runner for child in descendants(agent.pid)) for agent in agents}
    busiest = max(agents, key=lambda agent: containers[agent])
    assert containers[busiest] > 1, f"nothing to kill: {containers}"
    return busiest
