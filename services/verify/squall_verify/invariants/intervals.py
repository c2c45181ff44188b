"""Is there an order? Requests that overlap in time, and values of which each was written once. Pure.

A register whose values are all different is linearizable exactly if each value's zone agrees with every other's
(Gibbons and Korach, "Testing shared memories", 1997): a value's zone lies between the first end and the last beginning
of the requests that wrote or read it. Two zones that are surely taken (the first end lies before the last beginning)
must not overlap, and one that has just a moment must not lie within one that is taken.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

ALWAYS, NEVER = float("-inf"), float("inf")


@dataclass(frozen=True, slots=True)
class Interval:
    """From the beginning of a request to its end."""

    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Zone:
    """When a value must have been the present one."""

    value: str
    first: float
    last: float

    @property
    def taken(self) -> bool:
        return self.first < self.last


def zone_of(value: str, write: Interval, reads: Sequence[Interval]) -> Zone:
    """Of one value."""
    both = [write, *reads]
    return Zone(value, min(each.ended for each in both), max(each.began for each in both))


def disorder(zones: Iterable[Zone]) -> Iterator[tuple[Zone, Zone]]:
    """Pairs of values that no order allows."""
    found = list(zones)
    taken = sorted((zone for zone in found if zone.taken), key=lambda zone: zone.first)
    for one, other in pairwise(taken):
        if other.first < one.last:
            yield one, other
    begins = [zone.first for zone in taken]
    for zone in found:
        if zone.taken:
            continue
        before = bisect_right(begins, zone.last) - 1
        if before >= 0 and taken[before].first < zone.last and zone.first < taken[before].last:
            yield taken[before], zone


def overlapping_pairs(spans: Iterable[tuple[str, float, float]]) -> Iterator[tuple[str, str]]:
    """Names of spans of which one begins before the other is over."""
    ordered = sorted((span for span in spans if span[1] < span[2]), key=lambda span: span[1])
    for one, other in pairwise(ordered):
        if other[1] < one[2]:
            yield one[0], other[0]
