"""When a webhook is tried again, and when it is given up. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SCHEDULE_S = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
"""Waits between the tries: ten of them within about three days, as Standard Webhooks recommends."""
JITTER = 0.2
"""A wait is up to so much longer than it says, so that what failed together does not come back together."""
GONE = 410
"""By this the receiver says that it never wants to hear of it again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one try."""

    status: int
    """Of the response; 0 = there was none."""
    reason: str
    """In words, for people."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver took it."""


@dataclass(frozen=True, slots=True)
class Again:
    """It is tried again."""

    at: float


@dataclass(frozen=True, slots=True)
class GivenUp:
    """It is not tried again."""

    reason: str


def decide(
    answer: Answer, tries: int, schedule_s: Sequence[float], now: float, random: float
) -> Delivered | Again | GivenUp:
    """What follows from the answer to try number `tries` (the first is 1); `random` is from 0 to 1."""
    if 200 <= answer.status < 300:
        return Delivered()
    if answer.status == GONE:
        return GivenUp("the receiver answered 410: it wants no more of them")
    if tries > len(schedule_s):
        return GivenUp(f"{tries} tries failed, the last one: {answer.reason}")
    return Again(now + schedule_s[tries - 1] * (1 + JITTER * random))
