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
LEAST_GAIN = 0.4
"""Growth that brought less than this share of what it should have brought is the last one: the machine is busy."""
PATIENCE_S = 1.0
"""How long a pool waits for its first container before it starts more: if that starts quickly, its rate is soon known;
if not (imports, a model), waiting would only cost time."""
FEW = 2
"""So many more are started without a figure: a function that waits for a call of itself ends nothing meanwhile."""
ARRIVING_S = 3.0
"""An accepted input is in its queue within a millisecond; when the server has just started, within a second or so."""
STEP_CONTAINERS = 3
STEP_FACTOR = 2
STEP_FACTOR_SURE = 4
FULL_GAIN = 0.8
# One step each 0.2 s. Inputs that take longer than it takes to measure them are known to be worth a container: from 1
# to 4, 16, 64 .. they have a hundred within a second and a half. For shorter ones each step waits for the figure of the
# one before, and is as large only if that has brought what it should.
STEP_LASTING = 16
"""So many are begun before anything is measured where inputs are known, from calls before, to take much longer than a
container takes to start. These may be short all the same: there are more when none has ended for a moment."""
STEP_NO_ROOM = 3
"""Beyond what there is while nodes are full: enough to be told, and to be placed when there is room."""


def decide(sample: Sample, history: History, situation: Situation, now: float) -> Decision:
    """The count for this moment. Records the need in `history`."""
    if situation.stopped:
        return Decision(count=0, reason="its app is stopped")
    if sample.inputs is None:
        return _hold(sample, situation, "the queue could not be asked")
    if sample.inputs + sample.web > sample.ready * situation.policy.target_inputs:
        history.work.record(sample.finished, sample.ready, now)
    else:
        history.work.rest()
    history.work.watch(sample.finished, sample.running, now)
    need, why = _need(sample, history, situation, now)
    if situation.woken_at > history.woken_at:
        # Counted once: the scaledown window runs from the arrival, not from the end of the wait for it.
        history.woken_at = situation.woken_at
        history.needed.record(1, now)
    arriving = now - situation.woken_at < ARRIVING_S
    if need == 0:
        history.idle_until = now
    history.needed.record(need, now)
    if situation.retired and need == 0 and sample.running == 0 and not arriving:
        return Decision(count=0, reason="a newer version is deployed and nothing is left to do")
    return _within_limits(sample, history, situation, need, why, now)


def _need(sample: Sample, history: History, situation: Situation, now: float) -> tuple[int, str]:
    """Containers for what there is to do now."""
    inputs = max(sample.inputs or 0, sample.running - sample.web) + sample.web
    target = situation.policy.target_inputs
    if inputs == 0:
        return 0, "nothing to do"
    need = math.ceil(inputs / target)
    why = f"{_inputs(inputs)}, {sample.running} running"
    if target > 1:
        why += f", {target} per container"
    need += _buffer(situation)
    if need > sample.ready:
        worth, because = _worth(need, inputs, sample, history, now)
        if sample.ready and history.work.per_s() is None:
            worth = max(worth, min(situation.desired, need))  # what was decided stands until there is a figure
        if worth < need:
            return worth, f"{why}; {because}"
    return need, why


def _worth(need: int, inputs: int, sample: Sample, history: History, now: float) -> tuple[int, str]:
    """Up to how many containers more of them end the inputs sooner."""
    there, rate = max(1, sample.live), history.work.per_s()
    if rate is None and need <= there + FEW:
        return need, ""
    if rate is None and there < STEP_LASTING and history.work.lasting(now):
        return min(need, STEP_LASTING), "those before took long"
    if rate is None and history.work.still_lasting(now):
        return need, ""
    if sample.ready == 0:
        return (need, "") if now - history.idle_until >= PATIENCE_S else (there, "the first container is starting")
    if sample.finished is None:
        return need, ""  # nobody counts
    if history.work.long():
        return need, ""
    if rate is None:
        return there, "their rate is being measured"
    if rate == 0:
        return need, ""
    if sample.starting:
        return there, "the last ones are starting"
    gain = history.work.gain()
    if gain is not None and gain < LEAST_GAIN:
        return there, f"{rate:.0f} per second, and the last containers made it no faster"
    return math.ceil(inputs * sample.ready / (rate * ENOUGH_S) - 1e-6), f"{rate:.0f} per second by {sample.ready}"


def _within_limits(sample: Sample, history: History, situation: Situation, need: int, why: str, now: float) -> Decision:
    """The need, bounded from both sides, each bound with its reason."""
    policy = situation.policy
    window_s = policy.scaledown_window_s
    count, unserved = need, need > sample.ready
    held = min(sample.live, _recent(sample, history, situation, now))
    if held > count:
        count, why = held, f"{why}; needed within the last {window_s:.0f} s"
    if count == 0 and now - situation.woken_at < ARRIVING_S:
        count, why = 1, "an input has arrived"
    least = 0 if situation.retired else policy.min_containers
    if count < least:
        count, why = least, f"{why}; min_containers {least}"
    # The step bounds growth. What is wanted already may be on its way to being placed.
    most = max(_step(sample, history, situation, now), least, situation.desired)
    if count > most:
        count, why = most, f"{why}; {most} in this step"
    if policy.max_containers is not None and count > policy.max_containers:
        count, why = policy.max_containers, f"{why}; max_containers {policy.max_containers}"
    if situation.failing and count > max(1, sample.ready):
        count, why = max(1, sample.ready), f"{why}; its containers do not start"
    if not sample.heard and count < situation.desired:
        return _hold(sample, situation, "not every node was heard of")
    return Decision(count=count, reason=why, unserved=unserved)


def _step(sample: Sample, history: History, situation: Situation, now: float) -> int:
    """As many as there may be after this step."""
    first = STEP_LASTING if history.work.per_s() is None and history.work.lasting(now) else 1
    if sample.live == 0:
        return first
    if situation.no_room:
        return sample.live + STEP_NO_ROOM
    if sample.live < first:
        return first
    gain = history.work.gain()
    measured = history.work.long() or (gain is not None and gain >= FULL_GAIN)
    sure = sample.ready > 0 and (measured or history.work.still_lasting(now))
    return max(sample.live * (STEP_FACTOR_SURE if sure else STEP_FACTOR), sample.live + STEP_CONTAINERS)


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
