"""Sometimes-properties: what a run must have met at least once, or it has proved little. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from squall_verify.evidence import Evidence, Key
from squall_verify.invariants.histories import by_key


@dataclass(frozen=True, slots=True)
class Met:
    """One property and how often it was met."""

    name: str
    times: int


def properties(evidence: Evidence) -> tuple[Met, ...]:
    """Every one, met or not."""
    counts = Counter(fault.name for fault in evidence.happened)
    return (
        Met("redelivery", len(redelivered(evidence))),
        Met("superseded result", len(superseded(evidence))),
        Met("agent loss", counts["kill-agent"]),
        Met("nats restart", counts["kill-bus"]),
    )


def redelivered(evidence: Evidence) -> set[Key]:
    """Inputs that ran again although no attempt of theirs had failed by itself."""
    found = set()
    failed = by_key(effect for effect in evidence.effects if effect.what == "raise")
    for key, starts in by_key(effect for effect in evidence.effects if effect.what == "start").items():
        if len(starts) > 1 + len(failed.get(key, [])):
            found.add(key)
    return found


def superseded(evidence: Evidence) -> set[Key]:
    """Inputs of which two executions came to their end; one of the results was thrown away."""
    ends: dict[Key, set[str]] = defaultdict(set)
    for effect in evidence.effects:
        if effect.what == "end":
            ends[effect.key].add(effect.nonce)
    told = {(each.call, each.index) for each in evidence.told if each.event == "superseded"}
    return {key for key, nonces in ends.items() if len(nonces) > 1} | told
