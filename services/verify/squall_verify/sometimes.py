"""Sometimes-properties: what a run must have met at least once, or it has proved little. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import combinations

from squall_verify.evidence import Evidence, Key
from squall_verify.invariants.dicts import YES, of_kind
from squall_verify.invariants.histories import by_key
from squall_verify.state import CUT, REFUSED


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
        Met("claim lost to another", len(lost_claims(evidence))),
        Met("item got by another", len(got_by_others(evidence))),
        Met("commits at the same time", commits_at_once(evidence)),
        Met("tick while something was hurt", len(hurt_ticks(evidence))),
        Met("web request without an answer", len(broken_requests(evidence))),
        Met("webhook sent again", len(sent_again(evidence))),
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


def lost_claims(evidence: Evidence) -> list[str]:
    """Who wanted a key of a dict for himself, and was told that another one has it."""
    return [step.name for step in of_kind(evidence, "dict", "claim") if step.done and step.got != (YES,)]


def got_by_others(evidence: Evidence) -> list[str]:
    """Items of queues that another operation got than the one that put them."""
    gets = of_kind(evidence, "queue", "get")
    return [item for step in gets for item in step.got if not item.startswith(f"{step.op}.")]


def commits_at_once(evidence: Evidence) -> int:
    """Pairs of commits to one volume of which one began before the other was over."""
    commits = [step for step in of_kind(evidence, "volume", "commit") if step.done]
    return sum(one.workspace == other.workspace and other.began < one.ended for one, other in combinations(commits, 2))


def hurt_ticks(evidence: Evidence) -> list[float]:
    """Ticks whose time came while a scheduler or the bus was hurt."""
    hurt = [each for each in evidence.happened if each.victim.startswith(("scheduler", "bus"))]
    ticks = [tick for schedule in evidence.state.schedules for tick, _ in schedule.ticks]
    return [tick for tick in ticks if any(each.began - 0.5 <= tick <= each.ended + 3.0 for each in hurt)]


def broken_requests(evidence: Evidence) -> list[str]:
    """Web requests that were refused, or whose answer did not come in full."""
    return [step.name for step in of_kind(evidence, "web") if step.outcome in (CUT, REFUSED)]


def sent_again(evidence: Evidence) -> set[str]:
    """Webhooks that their receiver got more than once."""
    times = Counter(heard.id for heard in evidence.state.heard)
    return {webhook for webhook, count in times.items() if count > 1}
