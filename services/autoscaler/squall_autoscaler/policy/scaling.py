"""Scaling: how many containers a pool should have, and why. Owns no state, does no I/O; `now` is an argument.

Enough for what waits and runs, at `target_inputs` each; never above max, never below min. More at once, in steps; fewer
only when the scaledown window has passed without need; never fewer because something is not known.
"""

from __future__ import annotations

import math

from squall_autoscaler.policy.windows import History
from squall_autoscaler.state import Decision, Sample, Situation

ENOUGH_S = 1.0
"""A queue that the present containers clear within this is not worth starting more: 5,000 no-ops on two cores would
otherwise start a hundred containers that compete with the work."""
STEP_FACTOR = 2
STEP_CONTAINERS = 3
# From 1 to 4, 8, 16, 32 .. with one step each 0.2 s: 100 containers are asked for within a second, and in that second
# the rate at which the first ones work has become known.


def decide(sample: Sample, history: History, situation: Situation, now: float) -> Decision:
    """The count for this moment. Records the need in `history`."""
    if situation.stopped:
        return Decision(count=0, reason="its app is stopped")
    if sample.inputs is None:
        return _hold(sample, situation, "the queue could not be asked")
    history.rate.record(sample.finished, now)
    need, why = _need(sample, history, situation)
    history.needed.record(need, now)
    if situation.retired and need == 0 and sample.running == 0:
        return Decision(count=0, reason="a newer version is deployed and nothing is left to do")
    return _within_limits(sample, history, situation, need, why, now)


def _need(sample: Sample, history: History, situation: Situation) -> tuple[int, str]:
    """Containers for what there is to do now."""
    inputs = max(sample.inputs or 0, sample.running) + sample.web
    target = situation.policy.target_inputs
    if inputs == 0:
        return 0, "nothing to do"
    need = math.ceil(inputs / target)
    why = f"{_inputs(inputs)}, {sample.running} running"
    if target > 1:
        why += f", {target} per container"
    rate = history.rate.per_s()
    if rate and need > sample.ready > 0 and inputs / rate <= ENOUGH_S:
        return sample.ready + _buffer(situation), f"{why}, done in {inputs / rate:.1f} s at {rate:.0f} per second"
    return need + _buffer(situation), why


def _within_limits(sample: Sample, history: History, situation: Situation, need: int, why: str, now: float) -> Decision:
    """The need, bounded from both sides, each bound with its reason."""
    policy = situation.policy
    window_s = policy.scaledown_window_s
    count, unserved = need, need > sample.ready
    held = min(sample.live, _recent(sample, history, situation, now))
    if held > count:
        count, why = held, f"{why}; needed within the last {window_s:.0f} s"
    least = 0 if situation.retired else policy.min_containers
    if count < least:
        count, why = least, f"{why}; min_containers {least}"
    # Never a step down from what there is: the step limits growth.
    most = max(sample.live * STEP_FACTOR, sample.live + STEP_CONTAINERS, least)
    if sample.live == 0:
        most = max(1, least)
    if count > most:
        count, why = most, f"{why}; {most} in this step"
    if policy.max_containers is not None and count > policy.max_containers:
        count, why = policy.max_containers, f"{why}; max_containers {policy.max_containers}"
    if situation.failing and count > max(1, sample.ready):
        count, why = max(1, sample.ready), f"{why}; its containers do not start"
    if not sample.heard and count < situation.desired:
        return _hold(sample, situation, "not every node was heard of")
    return Decision(count=count, reason=why, unserved=unserved)


def _recent(sample: Sample, history: History, situation: Situation, now: float) -> int:
    """What was needed in the scaledown window; all there is, as long as the window was not seen in full."""
    if situation.retired:
        return 0
    window_s = situation.policy.scaledown_window_s
    if not history.needed.covers(window_s, now):
        return sample.live
    return history.needed.over(window_s, now)


def _hold(sample: Sample, situation: Situation, why: str) -> Decision:
    """As it is: absence of data never ends a container, and never starts one."""
    least = 0 if situation.retired else situation.policy.min_containers
    count = max(situation.desired, least)
    return Decision(count=count, reason=f"unchanged: {why}", unserved=sample.starting > 0)


def _buffer(situation: Situation) -> int:
    return 0 if situation.retired else situation.policy.buffer_containers


def _inputs(number: int) -> str:
    return "1 input" if number == 1 else f"{number} inputs"
