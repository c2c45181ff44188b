"""Histories: evidence grouped by input, and the windows of time in which something was being hurt. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from squall_verify.evidence import Effect, Evidence, Happened, Key


class HasKey(Protocol):
    """Something about one input."""

    @property
    def key(self) -> Key: ...


K = TypeVar("K", bound=HasKey)

STALL = "stall"
"""Name under which the harness notes that the whole machine stood still."""
DRAIN = "drain-node"
"""The same of a machine that the operator took out of service for a while."""
SLOW = "slow-consumer"
"""It stands still too."""


def by_key(things: Iterable[K]) -> dict[Key, list[K]]:
    """In their order, for each input."""
    found: dict[Key, list[K]] = defaultdict(list)
    for thing in things:
        found[thing.key].append(thing)
    return dict(found)


def executions(effects: Iterable[Effect]) -> dict[str, list[Effect]]:
    """The lines of each execution, by nonce, in order of time."""
    found: dict[str, list[Effect]] = defaultdict(list)
    for effect in sorted(effects, key=lambda each: each.at):
        found[effect.nonce].append(effect)
    return dict(found)


def overlapping(evidence: Evidence, began: float, ended: float) -> list[Happened]:
    """Faults that were going on at some time between. Who had a wrong clock then may have written any time as wrong."""
    return [
        each for each in evidence.happened if each.began - each.skew_s <= ended and each.ended + each.skew_s >= began
    ]


def skew_s(evidence: Evidence, began: float, ended: float, node: str | None = None) -> float:
    """How wrong times from then may be; those of one node if it is named."""
    wrong = [each.skew_s for each in overlapping(evidence, began, ended) if node in (None, each.node)]
    return max(wrong, default=0.0)


def is_pause(fault: Happened) -> bool:
    """Something stood still and went on."""
    return fault.name.startswith("pause-") or fault.name in (STALL, SLOW)


def slack_s(evidence: Evidence, began: float, ended: float, which: Callable[[Happened], bool] = is_pause) -> float:
    """For how long something stood still between: nobody can keep a time limit then."""
    return sum(
        max(0.0, min(each.ended, ended) - max(each.began, began))
        for each in overlapping(evidence, began, ended)
        if which(each)
    )


def calm(evidence: Evidence, began: float, ended: float, margin_s: float) -> bool:
    """Whether no fault was going on then, nor so shortly before."""
    return not overlapping(evidence, began - margin_s, ended)
