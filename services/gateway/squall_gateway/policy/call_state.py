"""The state of a call as users see it, from what is recorded about its inputs. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from squall.spec import Outcome

QUEUED, RUNNING = "queued", "running"


def state_of(inputs: int, ended: Mapping[str, int], *, started: bool) -> str:
    """`ended`: inputs by outcome. A call with several inputs ends when all known ones have."""
    finished = sum(ended.values())
    if finished < inputs or not finished:
        return RUNNING if started or finished else QUEUED
    if len(ended) == 1:
        return next(iter(ended))
    worst = [outcome for outcome in _WORST_FIRST if ended.get(outcome)]
    return worst[0]


_WORST_FIRST = (
    Outcome.FAILED.value,
    Outcome.TIMED_OUT.value,
    Outcome.EXPIRED.value,
    Outcome.CANCELLED.value,
    Outcome.SUCCEEDED.value,
)
