"""Why an input waits, in one sentence for its caller. Pure; knows what others decided, decides nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """What is known about a pool's containers."""

    verdict: str = ""
    """Why the scheduler cannot place (all of) them; empty when it can."""
    claims: Sequence[tuple[str, str]] = ()
    """(state, reason) of each container."""
    desired: int | None = None
    """None when the autoscaler has not decided yet."""


def explain(pool: PoolView) -> str:
    """The most useful thing to say; empty when nothing is known to be in the way."""
    if pool.verdict:
        return pool.verdict
    states = Counter(state for state, _ in pool.claims)
    if states["ready"]:
        return f"{_containers(states['ready'])} at work" + (
            f", {states['starting']} starting" if states["starting"] else ""
        )
    if states["starting"] or states["proposed"]:
        return f"{_containers(states['starting'] + states['proposed'])} starting"
    for state, reason in pool.claims:
        if state in ("failed", "refused") and reason:
            return f"the last container {state}: {reason}"
    if not pool.desired:
        return "no container yet; waiting for the autoscaler"
    return "waiting for a place to start a container"


def _containers(count: int) -> str:
    return f"{count} container{'' if count == 1 else 's'}"
