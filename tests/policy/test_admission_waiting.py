"""What a waiting caller is told, and what state a call is said to be in."""

from __future__ import annotations

import pytest

from squall_gateway.policy.call_state import state_of
from squall_gateway.policy.waiting import PoolView, explain


@pytest.mark.parametrize(
    ("view", "text"),
    [
        (PoolView(), "no container yet; waiting for the autoscaler"),
        (PoolView(desired=1), "waiting for a place to start a container"),
        (PoolView(verdict="no node offers H100", claims=[("ready", "")]), "no node offers H100"),
        (PoolView(claims=[("proposed", ""), ("starting", "")], desired=2), "2 containers starting"),
        (PoolView(claims=[("ready", "")], desired=1), "1 container at work"),
        (PoolView(claims=[("ready", ""), ("starting", "")]), "1 container at work, 1 starting"),
        (PoolView(claims=[("failed", "import failed")], desired=1), "the last container failed: import failed"),
    ],
)
def test_the_most_useful_reason_is_told(view: PoolView, text: str) -> None:
    assert explain(view) == text


@pytest.mark.parametrize(
    ("inputs", "ended", "started", "state"),
    [
        (1, {}, False, "queued"),
        (1, {}, True, "running"),
        (1, {"succeeded": 1}, False, "succeeded"),
        (1, {"timed_out": 1}, True, "timed_out"),
        (3, {"succeeded": 2}, False, "running"),
        (3, {"succeeded": 3}, True, "succeeded"),
        (3, {"succeeded": 2, "cancelled": 1}, True, "cancelled"),
        (3, {"failed": 1, "cancelled": 2}, True, "failed"),
    ],
)
def test_a_call_with_several_inputs_ends_when_all_of_them_have(
    inputs: int, ended: dict[str, int], started: bool, state: str
) -> None:
    assert state_of(inputs, ended, started=started) == state
