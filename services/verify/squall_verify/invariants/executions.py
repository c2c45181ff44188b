"""Executions beside the record and beside each other: what has ended does not run again, and nothing runs twice at once
without a reason (I4, I5 as this platform means them)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise

from squall_verify.evidence import Effect, Evidence, Happened, Key, Used
from squall_verify.invariants.histories import by_key, executions, is_pause, overlapping
from squall_verify.invariants.verdict import Findings, Looking

BY_ITS_CODE = ("succeeded", "failed", "timed_out")
"""Ends of which the agent that is asked next knows by history alone; a cancel is looked at in I12."""
HANDED_OVER_S = 1.0
"""Between reading the history and the first line of user code."""
RECOVERING_S = 12.0
"""A fault may have cost a lease so long ago."""


def over_is_over(evidence: Evidence) -> Findings:
    """I4, second half: an input that has its result does not run again."""
    look = Looking()
    starts = by_key(effect for effect in evidence.effects if effect.what == "start")
    for result in evidence.recorded:
        if result.outcome not in BY_ITS_CODE:
            continue
        last = max((start.at for start in starts.get(result.key, [])), default=0.0)
        late_s = last - result.stored_at
        # Who stood still after it had read the history begins when it goes on.
        paused = any(map(is_pause, overlapping(evidence, result.stored_at - HANDED_OVER_S, last)))
        look.at(result.key, late_s <= HANDED_OVER_S or paused, f"began {late_s:.1f} s after its result was recorded")
    return look.findings()


def one_at_a_time(evidence: Evidence) -> Findings:
    """I5, second half: a second execution begins while the first one runs only if the first has lost its lease."""
    look = Looking()
    used: dict[Key, list[Used]] = defaultdict(list)
    for use in evidence.used:
        used[use.call, use.index].append(use)
    by_input: dict[Key, list[list[Effect]]] = defaultdict(list)
    for lines in executions(evidence.effects).values():
        by_input[lines[0].key].append(lines)
    for key, found in by_input.items():
        found.sort(key=lambda lines: lines[0].at)
        for first, second in pairwise(found):
            began = second[0].at
            at_once = first[-1].at > began
            node = _node(first[0], used[key])
            excused = not at_once or not node or _lost_its_lease(evidence, node, first[0].at, began)
            look.at(key, excused, f"began again after {began - first[0].at:.1f} s, while it ran on {node}")
    return look.findings("only inputs that ran more than once" if look.checked else "no input ran more than once")


def _node(start: Effect, used: Iterable[Used]) -> str:
    """Where an execution ran: of the metered intervals of its input the one that began with it."""
    nearest = min(used, key=lambda use: abs(use.started_at - start.at), default=None)
    return "" if nearest is None or abs(nearest.started_at - start.at) > HANDED_OVER_S else nearest.node


def _lost_its_lease(evidence: Evidence, node: str, began: float, again: float) -> bool:
    """Whether anything but another agent was hurt, so that the queue may have given the input away."""
    return any(_concerns(fault, node) for fault in overlapping(evidence, began - RECOVERING_S, again))


def _concerns(fault: Happened, node: str) -> bool:
    return not fault.node or fault.node == node
