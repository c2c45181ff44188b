"""Reconciling: what becomes of an input that has no result. Owns no state, does no I/O.

It must never end an input that somebody may be running, and never leave one that nobody will run.
"""

from __future__ import annotations

from dataclasses import dataclass

from squall_scheduler.state import Sighting

LEASE_S = 8.0
"""The ack wait of the queues: an agent that died has lost its inputs after this."""
PATIENCE_S = 2 * LEASE_S
"""How long an input must be out of its queue, without a result, before it is put back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expire:
    """Record that it waited too long."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeue:
    """Put it back into its queue."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """Nothing to do before `until`."""

    until: float
    reason: str


def judge(seen: Sighting, now: float) -> Expire | Requeue | Leave:
    """What to do about an input that has no result."""
    if now >= seen.over_at:
        return Expire(reason="it can neither wait nor run any longer")
    due = now >= seen.deadline
    if not seen.queued:
        lost_for_s = now - seen.missing_since
        if lost_for_s < PATIENCE_S:
            return Leave(until=seen.missing_since + PATIENCE_S, reason="an agent may be about to record its result")
        if due:
            return Expire(reason="its deadline has passed, and nobody has it")
        return Requeue(reason=f"it has been in no queue for {lost_for_s:.0f} s and has no result")
    if not due:
        return Leave(until=seen.deadline, reason="it waits or runs")
    if not seen.delivered:
        return Expire(reason="its deadline has passed before anybody took it")
    if not seen.pool_alive:
        return Expire(reason="its deadline has passed, and its pool has no container")
    # An agent has it, or it comes back to one, which looks at the deadline before it starts anything.
    return Leave(until=now + LEASE_S, reason="an agent has it")
