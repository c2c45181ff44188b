"""Two workspaces on the same machines: neither starves the other, neither sees the other's calls (L10, T12)."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator

from squall_verify.evidence import Accepted, Effect, Evidence, Key
from squall_verify.invariants.histories import STALL, by_key, overlapping, slack_s
from squall_verify.invariants.verdict import Findings, Looking

BACKLOG = 20
"""Inputs of others that waited when a call came, and that went first when it starved."""
FAIR_S = 10.0
"""A container of others finishes what it runs, and another one starts; on a machine that is busy with both."""
CALM_S = 3.0
"""What was hurt is ready again by then, and a call that came later has nothing to do with it."""
HIDDEN = "NotFoundError"
NO_ANSWER = ("ServiceError", "ConnectionError", "InternalError", "TimeoutError")
"""Says nothing: the gateway was away."""


def fairness(evidence: Evidence) -> Findings:
    """L10: while others flood the machines, a call starts soon, or the others do not get on either."""
    look = Looking()
    began = {
        key: starts[0].at for key, starts in by_key(sorted(_starts(evidence), key=lambda effect: effect.at)).items()
    }
    ended = {result.key: result.stored_at for result in evidence.recorded}
    arrived = sorted(evidence.accepted, key=lambda each: each.stored_at)
    for workspace in {each.workspace for each in arrived}:
        for call, start, waiting in _with_backlog(arrived, workspace, began):
            if call.key in began or call.key not in ended:  # the others were cancelled or expired
                _one(look, evidence, call, start, waiting)
    return look.findings("" if look.checked else "no call came while others had a backlog and nothing was hurt")


def _with_backlog(
    arrived: list[Accepted], workspace: str, began: dict[Key, float]
) -> Iterator[tuple[Accepted, float, list[float]]]:
    """The workspace's calls with when each began, and when the inputs of others began that waited as it came."""
    waiting: list[float] = []
    for each in arrived:
        start = began.get(each.key, float("inf"))
        if each.workspace == workspace:
            del waiting[: bisect_right(waiting, each.stored_at)]
            if len(waiting) >= BACKLOG:
                yield each, start, waiting
        elif each.workspace and each.key in began and start > each.stored_at:
            insort(waiting, start)


def _one(look: Looking, evidence: Evidence, call: Accepted, start: float, waiting: list[float]) -> None:
    # Both times are of clocks that do not jump.
    near = overlapping(evidence, call.stored_at - CALM_S, start)
    if any(fault.name != STALL and fault.ended >= call.stored_at - CALM_S for fault in near):
        return
    first, stood_still_s = bisect_right(waiting, start), slack_s(evidence, call.stored_at, start)
    fair = start - call.stored_at <= FAIR_S + stood_still_s or first < BACKLOG
    look.at(call.key, fair, f"waited {start - call.stored_at:.1f} s, while {first} inputs of others began")


def _starts(evidence: Evidence) -> list[Effect]:
    return [effect for effect in evidence.effects if effect.what == "start"]


def privacy(evidence: Evidence) -> Findings:
    """T12: who has the id of another workspace's call is told that there is none; lists show only one's own."""
    look = Looking()
    owner = {each.call: each.workspace for each in evidence.accepted}
    for line in evidence.seen:
        if line.what == "tried" and line.error not in NO_ANSWER:
            what = f"{line.detail} was {line.error or 'granted'} for a caller of another workspace"
            look.at(line.call, line.error == HIDDEN, what)
        elif line.what == "listed":
            of = owner.get(line.call, "")  # what nobody can read has none
            look.at(line.call, of in ("", line.detail), f"a call of workspace {of} is listed for {line.detail}")
    return look.findings()
