"""The eval fan-out: 2,000 inputs over .map() while one of two agents is killed."""

from __future__ import annotations

from signal import SIGKILL

import pytest
from tests.chaos.victims import Effects, function
from tests.support.platform import Platform

INPUTS = 2000
KILL_AT = 500


@pytest.mark.timeout(180)
def test_no_result_is_lost_repeated_or_reordered(platform: Platform, effects: Effects) -> None:
    evaluate = function("evaluate")
    agents = platform.parts_named("gpu-agent")
    evaluate.for_each([str(effects.file)] * 8, kwargs={"value": 0})
    effects.file.write_text("")
    received = []
    victim = agents[0]

    for answer in evaluate.map([str(effects.file)] * INPUTS, range(INPUTS)):
        received.append(answer)
        if len(received) == KILL_AT:
            platform.signal(victim.name, SIGKILL)

    assert received == [(value, value * value) for value in range(INPUTS)]
    executed = [int(line) for line in effects.lines()]
    assert set(executed) == set(range(INPUTS))
    # What a dead agent had leased runs again; what had a result does not.
    assert len(executed) < INPUTS * 1.2
    platform.restarted(victim)
