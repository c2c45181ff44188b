"""Dicts: one order of all writes and reads of a key, one winner of a claim, each value popped once (D1-D3). Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from squall_verify.evidence import Evidence
from squall_verify.invariants.intervals import ALWAYS, NEVER, Interval, disorder, overlapping_pairs, zone_of
from squall_verify.invariants.verdict import Findings, Looking
from squall_verify.state import FAILED, UNKNOWN, Step

YES = "True"
NOTHING = ""
Place = tuple[str, str]
"""Workspace and key."""


def of_kind(evidence: Evidence, kind: str, *whats: str) -> list[Step]:
    """Steps of that kind, in order of their beginnings."""
    return [step for step in evidence.state.steps if step.kind == kind and (not whats or step.what in whats)]


def by_place(steps: Iterable[Step]) -> dict[Place, list[Step]]:
    """In their order."""
    found: dict[Place, list[Step]] = defaultdict(list)
    for step in steps:
        found[step.workspace, step.place].append(step)
    return found


def final_of(evidence: Evidence) -> dict[str, dict[str, str]]:
    """What each workspace's dict had in the end; a workspace that nobody could look at is not in it."""
    return {
        step.workspace: dict(line.split("=", 1) for line in step.got)
        for step in of_kind(evidence, "dict", "final")
        if step.done
    }


def failures(look: Looking, steps: Iterable[Step]) -> None:
    """Errors that nobody has promised."""
    for step in steps:
        look.at(step.name, step.outcome != FAILED, f"{step.what} of {step.place!r} failed: {step.detail}")


def register(evidence: Evidence) -> Findings:
    """D1: the puts and gets of a key have one order, which agrees with time, and each get sees the put before it."""
    look = Looking()
    failures(look, of_kind(evidence, "dict", "put", "get"))
    for (_, key), steps in by_place(of_kind(evidence, "dict", "put", "get")).items():
        writes = {step.values[0]: Interval(step.began, _end(step)) for step in steps if step.what == "put"}
        writes[NOTHING] = Interval(ALWAYS, ALWAYS)
        reads: dict[str, list[Interval]] = defaultdict(list)
        for step in steps:
            if step.what == "get" and step.done:
                reads[step.got[0]].append(Interval(step.began, step.ended))
        zones = []
        for value in {*writes, *reads}:
            look.at(key, value in writes, f"gave {value!r}, which nobody has put")
            if value not in writes or (writes[value].ended == NEVER and value not in reads):
                continue  # a put without an answer, that nobody has seen: it may never have been
            early = [read for read in reads[value] if read.ended < writes[value].began]
            look.at(key, not early, f"gave {value!r} before it was put")
            zones.append(zone_of(value, writes[value], reads[value]))
        wrong = list(disorder(zones))
        for one, other in wrong:
            look.at(key, False, f"{one.value!r} and {other.value!r} were both the present value at one time")
        look.checked += len(zones)
    return look.findings()


def _end(step: Step) -> float:
    return NEVER if step.outcome == UNKNOWN else step.ended


def one_winner(evidence: Evidence) -> Findings:
    """D2: of all who claim a key with `skip_if_exists` one is told that it has it, and its value is there."""
    look = Looking()
    failures(look, of_kind(evidence, "dict", "claim"))
    final = final_of(evidence)
    for (workspace, key), steps in by_place(of_kind(evidence, "dict", "claim")).items():
        won = [step for step in steps if step.done and step.got == (YES,)]
        look.at(key, len(won) <= 1, f"was given to {[step.name for step in won]}")
        if workspace not in final or not any(step.done for step in steps):
            continue
        there = final[workspace].get(key, NOTHING)
        owner = next((step for step in steps if there and step.values == (there,)), None)
        look.at(key, owner is not None, f"was claimed by {[step.name for step in steps]}, and has {there!r} in the end")
        for step in won:
            look.at(key, step is owner, f"{step.name} was told that it has it, and it has {there!r} in the end")
        if owner is not None and owner.done:
            look.at(key, owner.got == (YES,), f"{owner.name} was told that others have it, and has it")
    return look.findings()


def popped_once(evidence: Evidence) -> Findings:
    """D3: what was put where nothing was is popped by one, or is still there; and two are never there at once."""
    look = Looking()
    failures(look, of_kind(evidence, "dict", "offer", "pop"))
    final = final_of(evidence)
    for (workspace, key), steps in by_place(of_kind(evidence, "dict", "offer", "pop")).items():
        offers = {step.values[0]: step for step in steps if step.what == "offer"}
        pops: dict[str, list[Step]] = defaultdict(list)
        for step in steps:
            if step.what == "pop" and step.done and step.got != (NOTHING,):
                pops[step.got[0]].append(step)
        for value, of_value in pops.items():
            look.at(key, len(of_value) == 1, f"{value!r} was popped by {[step.name for step in of_value]}")
            offer = offers.get(value)
            look.at(key, offer is not None and offer.began <= of_value[0].ended, f"popped {value!r}, not put before")
        if workspace in final:
            _ends(look, key, steps, offers, pops, final[workspace].get(key, NOTHING))
    return look.findings()


def _ends(
    look: Looking, key: str, steps: list[Step], offers: dict[str, Step], pops: dict[str, list[Step]], there: str
) -> None:
    """What became of each value that was put."""
    maybe = [step for step in steps if step.what == "pop" and step.outcome == UNKNOWN]
    lost, spans = [], []
    for value, offer in offers.items():
        seen = value in pops or value == there
        if offer.done and offer.got != (YES,):
            look.at(key, not seen, f"{offer.name} was told that it has put nothing, and it was there")
        elif offer.done and not seen:
            lost.append(offer)
        elif offer.done:
            over = pops[value][0].began if value in pops else NEVER
            spans.append((value, offer.ended, over))
    look.at(key, len(lost) <= len(maybe), f"nobody has {[step.values[0] for step in lost]}, and it is not there")
    for one, other in overlapping_pairs(spans):
        look.at(key, False, f"{one!r} and {other!r} were there at the same time")


def repeated(counted: Counter[str]) -> list[str]:
    """What is there more than once."""
    return [name for name, times in counted.items() if times > 1]
