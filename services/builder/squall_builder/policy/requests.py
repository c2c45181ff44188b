"""What to do with a request to build. Owns no state, does no I/O.

A request may come twice, and after its image is there.
"""

from __future__ import annotations

from dataclasses import dataclass

from squall_builder.state import Known

TRIES = 3
"""Builds of one request that may end because of the machine rather than of the image."""
PAUSE_S = 5.0
REMOVED_AGAIN_S = 1.0
"""Removing an image takes milliseconds, and as long as the registry does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Do it."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """There is an answer that is newer than the request."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """A builder removes the image just now."""

    after_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """The machine was at fault: try later, maybe elsewhere."""

    after_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """The machine was at fault too often."""

    reason: str


def judge(requested_at: float, known: Known, now: float, *, lost: bool = False) -> Build | Answered | Later:
    """Whether an image must be built for a request.

    A failure is only an answer to requests from before it: who asks again wants to know whether it works now. `lost`:
    it was looked for where it should be, and is not there."""
    if known.state == "ready" and lost:
        return Build(reason="lost")
    if known.state == "ready":
        return Answered(reason="the image is there")
    if known.state == "failed" and known.updated_at >= requested_at:
        return Answered(reason="this request has failed already")
    if now < known.removed_until:
        return Later(after_s=REMOVED_AGAIN_S, reason="a builder removes it at the moment")
    return Build(reason="continued" if known.state == "building" else "new")


def after_breakdown(tries: int, cause: str) -> Again | GiveUp:
    """What follows a build that the machine ended (disk full, no more processes)."""
    if tries >= TRIES:
        return GiveUp(reason=f"gave up after {tries} tries: {cause}")
    return Again(after_s=PAUSE_S * tries, reason=cause)
