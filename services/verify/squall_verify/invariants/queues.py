"""Queues: each item goes to one taker, none is lost, first in is first out (Q1-Q3). Pure."""

from __future__ import annotations

from collections import Counter
from heapq import heappop, heappush

from squall_verify.evidence import Evidence
from squall_verify.invariants.dicts import by_place, failures, of_kind, repeated
from squall_verify.invariants.verdict import Findings, Looking
from squall_verify.state import UNKNOWN, Step

TAKES = ("get", "final")


def got_once(evidence: Evidence) -> Findings:
    """Q1: no item is got twice, and none that nobody has put."""
    look = Looking()
    failures(look, of_kind(evidence, "queue"))
    for (_, partition), steps in by_place(of_kind(evidence, "queue")).items():
        put = {value for step in steps if step.what == "put" for value in step.values}
        got = Counter(item for step in steps if step.what in TAKES for item in step.got)
        twice = repeated(got)
        look.at(partition, not twice, f"got more than once: {twice[:5]}")
        strange = set(got) - put
        look.at(partition, not strange, f"got, and never put: {sorted(strange)[:5]}")
        look.checked += len(got)
    return look.findings()


def none_lost(evidence: Evidence) -> Findings:
    """Q2: an item whose put was acknowledged was got, or was there in the end; unless a taker never had its answer."""
    look = Looking()
    for (_, partition), steps in by_place(of_kind(evidence, "queue")).items():
        if not any(step.what == "final" and step.done for step in steps):
            continue
        got = {item for step in steps if step.what in TAKES for item in step.got}
        acknowledged = [value for step in steps if step.what == "put" and step.done for value in step.values]
        lost = [value for value in acknowledged if value not in got]
        unanswered = sum(int(step.values[0]) for step in steps if step.what == "get" and step.outcome == UNKNOWN)
        look.at(partition, len(lost) <= unanswered, f"put, and neither got nor there in the end: {lost[:5]}")
        look.checked += len(acknowledged)
    return look.findings()


def first_out(evidence: Evidence) -> Findings:
    """Q3: of two items in a partition, of which one was there before the other's put began, it is got first."""
    look = Looking()
    for (_, partition), steps in by_place(of_kind(evidence, "queue")).items():
        taken = {item: step for step in steps if step.what in TAKES and step.done for item in step.got}
        puts = [step for step in steps if step.what == "put"]
        for one, other in _passed(puts, taken):
            look.at(partition, False, f"{other!r} was got before {one!r}, which was there before it")
        for step in steps:
            places = [puts_order(item) for item in step.got if item in taken]
            look.at(partition, _in_order(places), f"{step.name} got {list(step.got)[:6]}, not in the order of one put")
    return look.findings()


def puts_order(item: str) -> tuple[str, int]:
    """The put that an item was part of, and its place in it."""
    put, _, place = item.rpartition(".")
    return put, int(place)


def _in_order(places: list[tuple[str, int]]) -> bool:
    """Items of one put come in its order."""
    last: dict[str, int] = {}
    for put, place in places:
        if place < last.get(put, -1):
            return False
        last[put] = place
    return True


def _passed(puts: list[Step], taken: dict[str, Step]) -> list[tuple[str, str]]:
    """Pairs (was there first, was got first) that no order of puts and gets allows."""
    found: list[tuple[str, str]] = []
    waiting: list[tuple[float, str, float]] = []
    latest = ("", float("-inf"))
    """Of the items that were there: the one whose get began last."""
    for step in sorted(puts, key=lambda each: each.began):
        while waiting and waiting[0][0] < step.began:
            _, item, began = heappop(waiting)
            latest = max(latest, (item, began), key=lambda each: each[1])
        got = [item for item in step.values if item in taken]
        found += [(latest[0], item) for item in got if taken[item].ended < latest[1]]
        if step.done:
            for item in got:
                heappush(waiting, (step.ended, item, taken[item].began))
    return found
