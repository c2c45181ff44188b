"""How calls end: nothing is lost, nothing comes from nowhere, every read gives the one result (I1-I4, I6, I7)."""

from __future__ import annotations

from collections import defaultdict

from squall_verify.evidence import Evidence, Key, Seen
from squall_verify.invariants.histories import by_key, overlapping, slack_s
from squall_verify.invariants.verdict import Findings, Looking

SUCCEEDED = "succeeded"
RESTORED_S = 42.0
"""16 s of patience, 8 s between two rounds of the reconciler, 10 s until a lost lease of its shard is taken over by
another scheduler, and 8 s for the sampling itself."""
BUS_FAULTS = ("kill-bus", "pause-bus", "lose-bus-server")
ENDS = ("value", "error", "done", "refused", "unknown", "skipped")


def no_loss(evidence: Evidence) -> Findings:
    """I1. Also: what a client was told is accepted is in the journal, and nothing of the law vanishes."""
    look = Looking()
    recorded = by_key(evidence.recorded)
    for each in evidence.accepted:
        look.at(each.key, each.key in recorded, f"accepted at {each.stored_at:.3f}, and has no result")
    journal = {each.call for each in evidence.accepted}
    for line in evidence.seen:
        if line.what == "ack":
            look.at(line.call, line.call in journal, f"acknowledged to operation {line.op}, and not in the journal")
    for what in evidence.vanished:
        look.at(what, False, "was stored, and is another or gone in the end")
    for op, lines in operations(evidence).items():
        over = any(line.what in ENDS for line in lines)
        look.at(op, over, f"{lines[0].form} began at {lines[0].at:.3f}, and its caller never got an answer")
    return look.findings()


def no_phantom(evidence: Evidence) -> Findings:
    """I2: no result, execution or counted failure of a call that is not in the journal; one call for one request."""
    look = Looking()
    journal = {each.key for each in evidence.accepted}
    for key, records in by_key(evidence.accepted).items():
        look.at(key, len(records) == 1, f"accepted {len(records)} times, for {[each.pool for each in records]}")
    for result in evidence.recorded:
        look.at(result.key, result.key in journal, "has a result, and was never accepted")
    for key in {effect.key for effect in evidence.effects}:
        look.at(key, key in journal, "ran, and was never accepted")
    for count in evidence.counted:
        look.at(count.key, count.key in journal, "has a counted failure, and was never accepted")
    calls: dict[str, set[str]] = defaultdict(set)
    injected = evidence.injected
    for effect in evidence.effects:
        if effect.call not in injected:  # with a clock that is behind it may run though it came late
            calls[effect.op].add(effect.call)
    for op, of_op in calls.items():
        look.at(op, len(of_op) == 1 or "/" in op, f"one request made {len(of_op)} calls: {sorted(of_op)}")
    return look.findings()


def one_result(evidence: Evidence) -> Findings:
    """I3: one record, and whoever reads a value reads the recorded one, of his own call."""
    look = Looking()
    recorded = by_key(evidence.recorded)
    for key, results in recorded.items():
        look.at(key, len(results) == 1, f"has {len(results)} results")
    owner = {effect.nonce: effect.op for effect in evidence.effects}
    for line in evidence.seen:
        if line.what != "value" or not line.nonce:
            continue
        key = (line.call, line.index)
        nonce = recorded[key][0].nonce if key in recorded else "no result"
        look.at(key, line.nonce == nonce, f"{line.op} read the value of {line.nonce}, recorded is {nonce}")
        op = owner.get(line.nonce, "nobody")
        look.at(key, op == line.op, f"{line.op} was given the value of {op}")
    return look.findings()


def at_least_once(evidence: Evidence) -> Findings:
    """I4: a success was executed to its end."""
    look = Looking()
    ended = {(effect.key, effect.nonce) for effect in evidence.effects if effect.what == "end"}
    keys_ended = {key for key, _ in ended}
    for result in evidence.recorded:
        if result.outcome == SUCCEEDED:
            done = (result.key, result.nonce) in ended if result.nonce else result.key in keys_ended
            look.at(result.key, done, f"succeeded (attempt {result.attempt}), and no execution came to its end")
    return look.findings()


def record_before_ack(evidence: Evidence) -> Findings:
    """I6: while the bus server lives, an input leaves its queue only with a result."""
    look = Looking()
    accepted = {each.key: each for each in evidence.accepted}
    for earlier, later in zip(evidence.samples, evidence.samples[1:], strict=False):
        look.checked += 1
        for key in set(earlier.missing) & set(later.missing):
            since = accepted[key].stored_at if key in accepted else earlier.at
            hurt = [fault.name for fault in overlapping(evidence, since, later.at) if fault.name in BUS_FAULTS]
            if not hurt:
                look.at(key, False, f"in no queue and without a result at {later.at:.1f}; the bus was never hurt")
    return look.findings("looked at every two seconds")


def no_orphan(evidence: Evidence) -> Findings:
    """I7: what has dropped out of its queue comes back."""
    look = Looking()
    since: dict[Key, float] = {}
    worst: dict[Key, tuple[float, float]] = {}
    for sample in evidence.samples:
        present = set(sample.missing)
        since = {key: since.get(key, sample.at) for key in present}
        for key, first in since.items():
            worst[key] = (first, sample.at)
    for key, (first, last) in worst.items():
        late_s = last - first - slack_s(evidence, first, last, lambda _: True)
        look.at(key, late_s <= RESTORED_S, f"in no queue and without a result from {first:.1f} to {last:.1f}")
    return look.findings("" if worst else "nothing ever dropped out of its queue")


def operations(evidence: Evidence) -> dict[str, list[Seen]]:
    """The lines of each operation that began, in their order."""
    found: dict[str, list[Seen]] = defaultdict(list)
    for line in evidence.seen:
        found[line.op].append(line)
    return {op: lines for op, lines in found.items() if lines[0].what == "invoke"}
