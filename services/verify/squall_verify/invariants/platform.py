"""What the platform promises of itself: blobs, history, liveness, containers (I19, I21, I22, I43, I45, I48)."""

from __future__ import annotations

from collections import defaultdict

from squall_verify.evidence import Evidence, Key, Recorded
from squall_verify.invariants.histories import DRAIN, by_key, overlapping, slack_s
from squall_verify.invariants.verdict import Findings, Looking

SETTLED_S = 60.0
"""Three leases, and the work that is left: cold starts of every pool on two cores included."""
TO_ZERO_S = 25.0
"""The window, two ticks, and the time that @exit hooks and a busy machine need."""
LOSS_EXPLAINED_S = 30.0
WAITING = "waiting"


def blobs(evidence: Evidence) -> Findings:
    """I19: no record names a blob that is missing or another."""
    look = Looking()
    for ref, state in evidence.blobs.items():
        look.at(ref[:16], state == "ok", f"the blob is {state}")
    return look.findings()


def fold(results: list[Recorded]) -> str:
    """The state of an input by its history: it waits until its one result; failed attempts do not end it."""
    return results[0].outcome if results else WAITING


def history_is_law(evidence: Evidence) -> Findings:
    """I21: the state that the API tells is the one that follows from ATTEMPTS and RESULTS."""
    look = Looking()
    recorded = by_key(evidence.recorded)
    for call, told in evidence.states.items():
        key: Key = (call, 0)
        folded = fold(recorded.get(key, []))
        look.at(
            key,
            (WAITING if told in ("queued", "running") else told) == folded,
            f"the API says {told}, its history {folded}",
        )
    return look.findings("a sample of the calls with one input" if look.checked else "")


def liveness(evidence: Evidence) -> Findings:
    """I22: once the faults are over, everything that was accepted ends, and new calls work."""
    settled = evidence.settled
    if settled is None:
        return Findings(0)
    look = Looking()
    waited = f"still waiting or leased: {dict(settled.waiting)}"
    look.at("queues", settled.settled_at is not None, waited)
    if settled.settled_at is not None:
        took = settled.settled_at - settled.healed_at
        slack = slack_s(evidence, settled.healed_at, settled.settled_at)
        look.at("queues", took <= SETTLED_S + slack, f"empty {took:.0f} s after the last fault was healed")
    look.at("canaries", not settled.canaries, f"calls after healing failed: {settled.canaries}")
    return look.findings()


def no_leaks(evidence: Evidence) -> Findings:
    """S1: of sandboxes nothing is left when their platform has stopped, however its agents died."""
    if evidence.sandboxes is None:
        return Findings(0, note="containers were no sandboxes")
    look = Looking()
    look.checked = 1
    for what in evidence.sandboxes:
        look.at(what, False, "is left of the sandboxes")
    return look.findings()


def max_containers(evidence: Evidence) -> Findings:
    """I43: a pool never has more live claims than containers allowed."""
    look = Looking()
    allowed = {
        each.pool: evidence.functions[each.function].max_containers
        for each in evidence.accepted
        if each.function in evidence.functions
    }
    for sample in evidence.samples:
        for pool, ordinals in sample.claims.items():
            most = allowed.get(pool)
            if most is not None:
                fits = len(ordinals) <= most and max(ordinals, default=0) < most
                look.at(pool, fits, f"{len(ordinals)} claims {sorted(ordinals)} at {sample.at:.1f}, allowed are {most}")
    return look.findings("by claims; a paused agent's containers may outlive theirs")


def to_zero(evidence: Evidence) -> Findings:
    """I45: a pool that is idle for its window has no container."""
    settled = evidence.settled
    if settled is None or settled.settled_at is None:
        return Findings(0, note="the queues were never empty")
    look = Looking()
    windows = [facts.scaledown_window_s for facts in evidence.functions.values() if not facts.min_containers]
    most = max(windows, default=0.0) + TO_ZERO_S
    took = None if settled.empty_at is None else settled.empty_at - settled.settled_at
    for_s = "never" if took is None else f"after {took:.0f} s"
    good = took is not None and took <= most + slack_s(evidence, settled.settled_at, settled.settled_at + most)
    look.at("containers", good, f"no container {for_s}, allowed are {most:.0f} s; left: {dict(settled.left)}")
    return look.findings()


def no_busy_kill(evidence: Evidence) -> Findings:
    """I48: a container with an input in it is lost by a fault or by its own input, never by scaling down."""
    look = Looking()
    ends: dict[str, list[float]] = defaultdict(list)
    for use in evidence.used:
        ends[use.container].append(use.ended_at)
    for use in evidence.used:
        if use.outcome != "lost":
            look.checked += 1
            continue
        # A drain waits for what runs: it explains no loss.
        near = overlapping(evidence, use.started_at - LOSS_EXPLAINED_S, use.ended_at)
        hurt = [fault for fault in near if fault.name != DRAIN]
        # One input over its time takes its container with it, and so its neighbours.
        own = any(
            other.container == use.container and other.outcome in ("timed_out", "cancelled") for other in evidence.used
        )
        look.at((use.call, use.index), bool(hurt) or own, f"container {use.container} was lost without a fault")
    return look.findings()
