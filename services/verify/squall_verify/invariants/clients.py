"""What callers are promised besides results: order, refusals, repeated requests, versions (I14, I15, I17, I18, I57)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from squall_verify.evidence import Deployed, Evidence, Seen
from squall_verify.invariants.ending import operations
from squall_verify.invariants.histories import by_key
from squall_verify.invariants.verdict import Findings, Looking

ORDERED = ("map", "starmap", "exceptions")
MAPS = (*ORDERED, "unordered")
REPEATED = ("twice", "keyed")
SEVERAL_REQUESTS = (*MAPS, *REPEATED, "nested")
"""One of the requests may be refused after others were accepted."""
BROKEN = ("error", "unknown", "skipped")


def repeated_request(evidence: Evidence) -> Findings:
    """I14: requests with the same call id, or the same idempotency key, make one call; other arguments make none."""
    look = Looking()
    journal = by_key(evidence.accepted)
    for op, lines in operations(evidence).items():
        acks = {line.call for line in lines if line.what == "ack"}
        if lines[0].form not in REPEATED or not acks:
            continue
        look.at(op, len(acks) == 1, f"one call id or key was acknowledged as {sorted(acks)}")
        records = [len(found) for key, found in journal.items() if key[0] in acks]
        look.at(op, records == [1], f"sent twice, and the journal has {sum(records)} records of it")
    return look.findings()


def dead_letter(evidence: Evidence) -> Findings:
    """I15: every spawned call that ended badly has a dead letter, and a letter is about an accepted call."""
    look = Looking()
    letters, journal = set(evidence.letters), {each.key for each in evidence.accepted}
    spawned = {each.key for each in evidence.accepted if each.kind == "spawn"}
    for result in evidence.recorded:
        if result.key in spawned and result.outcome in ("failed", "timed_out", "expired"):
            look.at(result.key, result.key in letters, f"{result.outcome}, and not among the dead letters")
    for key in letters:
        look.at(key, key in journal, "has a dead letter, and was never accepted")
    return look.findings("redriving is tested by tests/services/gateway/test_letters.py")


def order(evidence: Evidence) -> Findings:
    """I17: a map gives each index once and in order; a generator neither leaves out an item nor repeats one."""
    look = Looking()
    for op, lines in operations(evidence).items():
        form, broken = lines[0].form, any(line.what in BROKEN for line in lines)
        if form in MAPS:
            _map(look, op, form, lines, broken)
        elif form == "generator":
            items = [line.seq for line in lines if line.what == "item"]
            wanted = lines[0].index if not broken else len(items)
            look.at(op, items == list(range(wanted)), f"items {items}, wanted are {wanted}")
    return look.findings("starts are in order of acceptance within a shard only, which is not promised and not checked")


def _map(look: Looking, op: str, form: str, lines: list[Seen], broken: bool) -> None:
    got = [line.seq for line in lines if line.what in ("value", "error") and line.seq >= 0]
    wanted = list(range(lines[0].index)) if not broken else sorted(set(got))
    if form in ORDERED:
        look.at(op, got == wanted, f"results {got[:20]} of {lines[0].index}, not in order or not each once")
    else:
        look.at(op, sorted(got) == wanted, f"results {sorted(got)[:20]} of {lines[0].index}, not each once")


def back_pressure(evidence: Evidence) -> Findings:
    """I18: what was refused has not been accepted."""
    look = Looking()
    ran = {effect.op for effect in evidence.effects}
    journal = {each.call for each in evidence.accepted}
    single = {op for op, lines in operations(evidence).items() if lines[0].form not in SEVERAL_REQUESTS}
    for line in evidence.seen:
        if line.what == "refused" and line.op in single:
            look.at(line.op, line.op not in ran, f"refused ({line.error}), and ran")
            if line.call:
                look.at(line.op, line.call not in journal, f"refused ({line.error}), and in the journal")
    return look.findings("" if look.checked else "no limit was reached")


def atomic_deploy(evidence: Evidence) -> Findings:
    """I57: every execution of a call runs one version, which was the deployed one when its first input was accepted."""
    look = Looking()
    if max((each.version for each in evidence.deployed), default=1) < 2:
        return Findings(0, note="nothing was deployed under load")
    function_of = {each.key: each for each in evidence.accepted}
    began: dict[str, float] = {}
    for each in evidence.accepted:
        began[each.call] = min(each.stored_at, began.get(each.call, each.stored_at))
    versions: dict[str, set[int]] = defaultdict(set)
    of_call: dict[str, set[int]] = defaultdict(set)
    for effect in evidence.effects:
        accepted = function_of.get(effect.key)
        if accepted is None:
            continue
        versions[accepted.function].add(effect.version)
        of_call[effect.call].add(effect.version)
        own = [each for each in evidence.deployed if each.workspace == accepted.workspace]
        allowed = _deployed_at(own, began[accepted.call])
        look.at(effect.key, effect.version in allowed, f"ran version {effect.version}; deployed was {sorted(allowed)}")
    for call, found in of_call.items():
        look.at(call, len(found) == 1, f"one call ran as versions {sorted(found)}")
    for function, found in versions.items():
        look.at(function, len(found) == 1, f"one function version ran as {sorted(found)}")
    return look.findings()


def _deployed_at(deployed: Sequence[Deployed], at: float) -> set[int]:
    """Versions that may have been the present one at that time: the last acknowledged, and those being deployed.

    A gateway may have resolved the call a moment before the journal stored it."""
    acknowledged = [each for each in deployed if each.ended <= at - RESOLVED_S]
    under_way = {each.version for each in deployed if each.began <= at and each.ended > at - RESOLVED_S}
    last = max(acknowledged, key=lambda each: each.ended, default=None)
    return under_way | ({last.version} if last else set())


RESOLVED_S = 30.0
"""A gateway resolves a call before it writes it to the journal, and a write may be repeated this long."""
