"""Single executions: fencing, retries, time limits, deadlines, cancels, poison (I5, I8, I10-I13, I16)."""

from __future__ import annotations

from collections.abc import Mapping

from squall_verify.evidence import Counted, Effect, Evidence, FunctionFacts, Key, Recorded
from squall_verify.invariants.histories import by_key, calm, executions, skew_s, slack_s
from squall_verify.invariants.verdict import Findings, Looking

LEASE_S = 8.0
GRACE_S = 2.0
CANCEL_HEARD_S = 2.0
MARGIN_S = 1.0
EARLY_S = 0.25
NEAR = 0.8
"""Of its timeout: the last sign of life of code that was stopped in time is a little before it."""
CALM_S = 12.0
"""After a fault things are as usual again: a lease has run out, everybody has reconnected."""
BY_ATTEMPT = ("failed", "timed_out")
SUCCEEDED = "succeeded"
ENDED_BY_AGENT = (SUCCEEDED, *BY_ATTEMPT)
INFRA = "infra"
LOST = " was lost"
"""In the reason of a failure that somebody else counts: the agent of the attempt is not heard of any more."""
INVALID = "invalid_input"
MAX_LOSSES = 8


def fencing(evidence: Evidence) -> Findings:
    """I5, as design 5.5 says it: a stale attempt may record success and nothing else."""
    look = Looking()
    ran = {((use.call, use.index), use.attempt): use for use in evidence.used}
    recorded = by_key(evidence.recorded)
    for key, counts in by_key(evidence.counted).items():
        _chain(look, key, counts)
        for count in counts:
            if LOST in count.reason:
                continue  # counted by who has the input now, about who had it before
            result = recorded[key][0] if key in recorded else None
            if result is not None and result.outcome in ENDED_BY_AGENT:
                look.at(key, count.stored_at <= result.stored_at, f"attempt {count.attempt} failed after the end")
            use = ran.get((key, count.attempt))
            if use is not None:
                stale = _stale(evidence, use.node, use.started_at, count.stored_at)
                look.at(key, not stale, f"stale attempt {count.attempt} on {use.node} counted a failure")
    for result in evidence.recorded:
        if result.outcome not in ENDED_BY_AGENT or not result.attempt:
            continue
        stale = _stale(evidence, result.node, result.started_at, result.stored_at)
        if stale or result.outcome in BY_ATTEMPT:
            fair = not stale or result.outcome == SUCCEEDED
            look.at(result.key, fair, f"stale attempt {result.attempt} on {result.node} recorded {result.outcome}")
    return look.findings()


def _chain(look: Looking, key: Key, counts: list[Counted]) -> None:
    """Each record counts exactly one more failure than the one before: nobody has counted past another."""
    before = 0
    for count in counts:
        total = count.user + count.infra
        look.at(key, total == before + 1, f"attempt {count.attempt} made {before} failures {total}")
        before = total


def _stale(evidence: Evidence, node: str, started: float, stored: float) -> bool:
    """Whether the agent stood still past its leases between start and record. It says itself when it started."""
    if skew_s(evidence, started, stored, node):
        return False
    return any(
        fault.name == "pause-agent"
        and fault.node == node
        and fault.ended - fault.began > LEASE_S
        and started < fault.began
        and fault.ended < stored
        for fault in evidence.happened
    )


def retries(evidence: Evidence) -> Findings:
    """I8: user failures use up retries, losses do not; no retry is early."""
    look = Looking()
    functions = {each.key: evidence.functions.get(each.function) for each in evidence.accepted}
    counted, recorded = by_key(evidence.counted), by_key(evidence.recorded)
    starts = by_key(effect for effect in evidence.effects if effect.what == "start")
    for key, counts in counted.items():
        facts = functions.get(key)
        if facts is None:
            continue
        most = max(count.user for count in counts)
        look.at(key, most <= facts.max_retries, f"{most} user failures were retried, allowed are {facts.max_retries}")
        lost = max(count.infra for count in counts)
        look.at(key, lost <= MAX_LOSSES, f"was lost {lost} times and given back each time")
        _delays(look, evidence, counts, facts, starts.get(key, []))
    _raised(look, evidence, functions)
    for key, results in recorded.items():
        facts = functions.get(key)
        if facts is not None and results[0].outcome in BY_ATTEMPT:
            _used_up(look, results[0], facts, counted.get(key, []))
    return look.findings()


def _raised(look: Looking, evidence: Evidence, functions: Mapping[Key, FunctionFacts | None]) -> None:
    """User code that raised as often as it could without anybody counting. What was lost before it was counted does
    not, so only quiet times tell."""
    for key, raised in by_key(effect for effect in evidence.effects if effect.what == "raise").items():
        facts = functions.get(key)
        if facts is not None and calm(evidence, raised[0].at, raised[-1].at, CALM_S):
            fair = len(raised) <= facts.max_retries + 1
            look.at(key, fair, f"raised {len(raised)} times, allowed are {facts.max_retries} retries")


def _delays(
    look: Looking, evidence: Evidence, counts: list[Counted], facts: FunctionFacts, starts: list[Effect]
) -> None:
    for count in counts:
        key = count.key
        if count.kind != "user":
            continue
        declared = min(facts.initial_delay_s * facts.backoff ** (count.user - 1), facts.max_delay_s)
        told = count.retry_at - count.failed_at
        look.at(key, abs(told - declared) <= max(0.1 * declared, EARLY_S), f"waits {told:.2f} s, not {declared:.2f}")
        following = [start.at for start in starts if start.at > count.stored_at]
        if following:
            wrong_s = skew_s(evidence, count.stored_at, min(following))
            early = min(following) < count.retry_at - EARLY_S - wrong_s
            look.at(key, not early, f"ran {count.retry_at - min(following):.2f} s before its retry was due")


def _used_up(look: Looking, result: Recorded, facts: FunctionFacts, counts: list[Counted]) -> None:
    """A failure of user code is the result only after every retry."""
    if result.error in (INFRA, INVALID) or not result.attempt:
        return
    user = counts[-1].user if counts else 0
    look.at(
        result.key, user == facts.max_retries, f"ended {result.outcome} after {user} of {facts.max_retries} retries"
    )


def timeout(evidence: Evidence) -> Findings:
    """I10: code that runs over its time is gone soon after it."""
    look = Looking()
    facts = {each.key: evidence.functions.get(each.function) for each in evidence.accepted}
    for lines in executions(evidence.effects).values():
        first, last = lines[0], lines[-1]
        known = facts.get(first.key)
        if known is None or known.max_inputs > 1 or last.at - first.at < NEAR * known.timeout_s:
            continue
        most = known.timeout_s + GRACE_S + MARGIN_S + slack_s(evidence, first.at, last.at)
        ran = last.at - first.at
        look.at(first.key, ran <= most, f"ran for {ran:.1f} s; its timeout is {known.timeout_s:g} s")
    return look.findings()


def deadline(evidence: Evidence) -> Findings:
    """I11: what has waited past its deadline never starts, and ends expired."""
    look = Looking()
    recorded = by_key(evidence.recorded)
    starts = by_key(effect for effect in evidence.effects if effect.what == "start")
    for each in evidence.accepted:
        outcome = recorded[each.key][0].outcome if each.key in recorded else ""
        first = min((start.at for start in starts.get(each.key, [])), default=None)
        if outcome == "expired":
            look.at(each.key, first is None, f"expired, and had started at {first or 0:.3f}")
        elif first is not None and first > each.deadline:
            allowed = each.deadline + EARLY_S + skew_s(evidence, each.stored_at, first)
            look.at(each.key, first <= allowed, f"started {first - each.deadline:.2f} s past its deadline")
    return look.findings()


def cancel(evidence: Evidence) -> Findings:
    """I12: after an acknowledged cancel nothing starts, what runs ends soon, and the result says so."""
    look = Looking()
    recorded, effects = by_key(evidence.recorded), by_key(evidence.effects)
    for line in evidence.seen:
        if line.what != "cancelled":
            continue
        for key in [key for key in recorded if key[0] == line.call]:
            result = recorded[key][0]
            if result.outcome == "cancelled":
                _nothing_after(look, evidence, key, line.at, effects.get(key, []))
            else:
                before = result.stored_at <= line.at + EARLY_S
                look.at(key, before, f"{result.outcome} {result.stored_at - line.at:.2f} s after its cancel")
    return look.findings()


def _nothing_after(look: Looking, evidence: Evidence, key: Key, at: float, effects: list[Effect]) -> None:
    late = [effect.at - at for effect in effects if effect.what == "start" and effect.at > at + EARLY_S]
    look.at(key, not late, f"started {max(late, default=0):.2f} s after its cancel was acknowledged")
    last = max((effect.at for effect in effects), default=0.0)
    # The word to a running agent is a plain message: one that is just losing its connection misses it.
    if last > at and calm(evidence, at, last, CALM_S):
        most = CANCEL_HEARD_S + GRACE_S + MARGIN_S
        look.at(key, last - at <= most, f"ran on for {last - at:.1f} s after its cancel was acknowledged")


def preemption(evidence: Evidence) -> Findings:
    """I13."""
    return Findings(0, note="this release preempts nothing")


def poison(evidence: Evidence) -> Findings:
    """I16: bytes that are no call end as invalid input, without an execution, and block nobody."""
    look = Looking()
    recorded = by_key(evidence.recorded)
    ran = {effect.key for effect in evidence.effects}
    for each in evidence.accepted:
        if each.readable:
            continue
        result = recorded[each.key][0] if each.key in recorded else None
        ended = "no result" if result is None else f"{result.outcome} ({result.error})"
        look.at(each.key, ended == f"failed ({INVALID})", f"unreadable, and ended with {ended}")
        look.at(each.key, each.key not in ran, "unreadable, and ran")
    return look.findings("that the next call starts within 2 s is seen as liveness (I22)")
