"""Each checker of `squall verify` on histories that it must accept, and on ones that it must not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.policy.state_histories import MET, STATE_BAD, STATE_GOOD

from squall_verify.evidence import (
    GUEST,
    MAIN,
    Accepted,
    Counted,
    Deployed,
    Effect,
    Evidence,
    FunctionFacts,
    Happened,
    Key,
    Recorded,
    Sample,
    Seen,
    Settled,
    Told,
    Used,
)
from squall_verify.invariants import INVARIANTS
from squall_verify.invariants.verdict import State, Verdict, judge
from squall_verify.report import as_text, make_report
from squall_verify.sometimes import properties

CALL, OTHER = "fc-01m80kcghxvx0gt4hhpyk80001", "fc-01m80kcghxvx0gt4hhpyk80002"
KEY: Key = (CALL, 0)
POOL = "po-1"
NONCE, SECOND = "nx-0000000000000001", "nx-0000000000000002"
FACTS = FunctionFacts(name="f", max_retries=2, initial_delay_s=0.5, backoff=2.0, timeout_s=1.0, max_containers=2)


def accepted(call: str = CALL, **more: object) -> Accepted:
    known: dict[str, object] = {
        "call": call,
        "index": 0,
        "pool": POOL,
        "function": "fu-1",
        "kind": "spawn",
        "stored_at": 100.0,
        "deadline": 1000.0,
    }
    return Accepted(**{**known, **more})  # type: ignore[arg-type]


def recorded(call: str = CALL, **more: object) -> Recorded:
    known: dict[str, object] = {
        "call": call,
        "index": 0,
        "outcome": "succeeded",
        "attempt": "1-a",
        "stored_at": 102.0,
        "started_at": 101.0,
        "nonce": NONCE,
    }
    return Recorded(**{**known, **more})  # type: ignore[arg-type]


def counted(user: int = 1, infra: int = 0, **more: object) -> Counted:
    known: dict[str, object] = {
        "call": CALL,
        "index": 0,
        "attempt": f"{user + infra}-a",
        "kind": "user",
        "user": user,
        "infra": infra,
        "failed_at": 101.2,
        "retry_at": 101.7,
        "stored_at": 101.25,
    }
    return Counted(**{**known, **more})  # type: ignore[arg-type]


def effect(what: str, at: float, nonce: str = NONCE, call: str = CALL, **more: object) -> Effect:
    known: dict[str, object] = {
        "what": what,
        "call": call,
        "index": 0,
        "attempt": 1,
        "nonce": nonce,
        "at": at,
        "pid": 7,
        "op": "op-1",
        "function": "f",
        "version": 1,
    }
    return Effect(**{**known, **more})  # type: ignore[arg-type]


def seen(what: str, at: float = 103.0, op: str = "op-1", **more: object) -> Seen:
    return Seen(op=op, what=what, at=at, **more)  # type: ignore[arg-type]


def used(outcome: str = "succeeded", **more: object) -> Used:
    known: dict[str, object] = {
        "call": CALL,
        "index": 0,
        "attempt": "1-a",
        "container": "co-1",
        "started_at": 101.0,
        "ended_at": 101.9,
        "node": "local-0",
    }
    return Used(**{**known, "outcome": outcome, **more})  # type: ignore[arg-type]


def fault(name: str, began: float, ended: float, **more: object) -> Happened:
    return Happened(name=name, began=began, ended=ended, **more)  # type: ignore[arg-type]


RUN = Evidence(
    accepted=(accepted(),),
    recorded=(recorded(),),
    effects=(effect("start", 101.0), effect("end", 101.9)),
    seen=(
        seen("invoke", 99.9, form="spawn", index=1),
        seen("ack", 100.1, call=CALL),
        seen("value", 103.0, call=CALL, nonce=NONCE),
        seen("done", 103.0),
    ),
    used=(used(),),
    functions={"fu-1": FACTS},
)
"""One call that went well."""


def run(**changes: object) -> Evidence:
    return replace(RUN, **changes)  # type: ignore[arg-type]


def verdict(name: str, evidence: Evidence) -> Verdict:
    return judge(next(each for each in INVARIANTS if each.name == name), evidence)


PAUSED = fault("pause-agent", 101.1, 111.0, node="local-0")
MAP = (seen("invoke", 99.9, form="map", index=3), *(seen("value", 101, seq=n) for n in range(3)), seen("done"))
FAILED = recorded(outcome="failed", nonce="", error="user")
CANCELLED = recorded(outcome="cancelled", nonce="", attempt="", stored_at=102.0)
CANCEL = seen("cancelled", 102.1, call=CALL)
TWICE = (
    seen("invoke", 99.9, form="twice", index=1),
    seen("ack", 100.1, call=CALL),
    seen("ack", 100.2, call=CALL),
    seen("done"),
)
SETTLED = Settled(healed_at=200.0, settled_at=210.0, empty_at=220.0)
DEPLOYED = (Deployed(version=1, began=1, ended=2), Deployed(version=2, began=50, ended=60))
POISONED = run(
    accepted=(accepted(readable=False),),
    recorded=(recorded(outcome="failed", attempt="", nonce="", error="invalid_input"),),
    effects=(),
)
EXPIRED = recorded(outcome="expired", attempt="", nonce="")
AT_ONCE = run(
    effects=(effect("start", 101.0), effect("start", 101.5, SECOND), effect("end", 101.9)),
    used=(used(), used(attempt="2-b", started_at=101.5, node="local-1")),
)
AGAIN = replace(AT_ONCE, effects=(effect("start", 101.0), effect("raise", 101.2), effect("start", 101.5, SECOND)))


def flooded(began: float, others_at: float = 101.0) -> Evidence:
    """A guest's call that came while fifty inputs of the other workspace waited."""
    fifty = range(1, 51)
    return run(
        accepted=(accepted(workspace=GUEST), *(accepted(OTHER, index=n, stored_at=99.0) for n in fifty)),
        effects=(
            effect("start", began),
            *(effect("start", others_at + n / 10, f"nx-{n}", OTHER, index=n) for n in fifty),
        ),
    )


GOOD: list[tuple[str, Evidence]] = [
    ("I1", RUN),
    ("I1", run(seen=(seen("invoke", form="remote"), seen("unknown", error="ServiceError")))),
    ("I2", RUN),
    (
        "I2",
        run(
            accepted=(accepted(), accepted(OTHER)),
            effects=(effect("start", 101), effect("start", 101, SECOND, call=OTHER)),
            happened=(replace(fault("late-call", 100, 100), detail=OTHER),),
        ),
    ),
    ("I3", RUN),
    ("I4", RUN),
    ("I4", run(effects=(effect("start", 101), effect("start", 109, SECOND), effect("end", 110)))),
    ("I4b", RUN),
    ("I4b", run(effects=(*RUN.effects, effect("start", 110, SECOND)), happened=(PAUSED,))),
    ("I5b", AGAIN),
    ("I5b", replace(AT_ONCE, happened=(fault("kill-agent", 101.2, 101.2, node="local-0"),))),
    ("I5b", replace(AT_ONCE, happened=(fault("kill-bus", 95, 95),))),
    ("I5", run(recorded=(FAILED,), counted=(counted(1), counted(2, stored_at=101.5)))),
    ("I5", run(recorded=(FAILED,), happened=(replace(PAUSED, ended=105.0),))),
    ("I5", run(recorded=(recorded(stored_at=112.0, node="local-0"),), happened=(PAUSED,))),
    ("I5", run(recorded=(CANCELLED,), counted=(counted(1, stored_at=103.0),))),
    (
        "I5",
        run(counted=(counted(0, 1, kind="infra", stored_at=112, reason="attempt 1-a was lost"),), happened=(PAUSED,)),
    ),
    ("I6", run(samples=(Sample(at=110), Sample(at=112)))),
    ("I6", run(samples=(Sample(at=110, missing=(KEY,)), Sample(at=112)))),
    (
        "I6",
        run(
            samples=(Sample(at=110, missing=(KEY,)), Sample(at=112, missing=(KEY,))),
            happened=(fault("kill-bus", 105, 105),),
        ),
    ),
    ("I7", run(samples=(Sample(at=110, missing=(KEY,)), Sample(at=130, missing=(KEY,)), Sample(at=132)))),
    ("I8", run(counted=(counted(1),), effects=(effect("start", 101), effect("start", 101.8, SECOND)))),
    ("I8", run(counted=(counted(1),), effects=(effect("raise", 101), effect("raise", 102), effect("raise", 103)))),
    ("I8", run(counted=(counted(1), counted(2, failed_at=102, retry_at=103)), recorded=(FAILED,))),
    ("I8", run(counted=(counted(0, 1, kind="infra"),), recorded=(recorded(outcome="failed", error="infra"),))),
    ("I10", run(effects=(effect("start", 101), effect("tick", 104.5)))),
    ("I10", run(effects=(effect("start", 101), effect("tick", 109)), happened=(fault("pause-agent", 102, 108),))),
    ("I11", run(accepted=(accepted(deadline=100.5),), recorded=(EXPIRED,), effects=())),
    ("I12", run(seen=(CANCEL,), recorded=(CANCELLED,))),
    ("I12", run(seen=(CANCEL,))),
    ("I14", run(seen=TWICE)),
    ("I14", run(seen=(replace(TWICE[0], form="keyed"), *TWICE[1:]))),
    ("I15", run(recorded=(FAILED,), letters=(KEY,))),
    ("I16", POISONED),
    ("I17", run(seen=MAP)),
    ("I17", run(seen=(seen("invoke", form="generator", index=2), seen("item", seq=0), seen("item", seq=1)))),
    ("I17", run(seen=(seen("invoke", form="generator", index=9), seen("item", seq=0), seen("error")))),
    ("I18", run(seen=(seen("invoke", op="op-2"), seen("refused", op="op-2", error="ResourceExhaustedError")))),
    ("I19", run(blobs={"ab:1": "ok"})),
    ("I21", run(states={CALL: "succeeded"})),
    ("I21", run(recorded=(), states={CALL: "queued"})),
    ("I22", run(settled=SETTLED)),
    ("I43", run(samples=(Sample(at=110, claims={POOL: (0, 1)}),))),
    ("I45", run(settled=SETTLED)),
    ("I48", RUN),
    ("I48", run(used=(used("lost"),), happened=(fault("kill-runner", 101.5, 101.5),))),
    ("I48", run(used=(used("lost"), used("timed_out", call=OTHER)))),
    ("I57", run(deployed=DEPLOYED, effects=(effect("start", 101, version=2),))),
    ("I57", run(deployed=(DEPLOYED[0], replace(DEPLOYED[1], began=95, ended=110)))),
    (
        "I57",  # the first input of a map came before the deploy, the others long after it
        run(
            deployed=(DEPLOYED[0], replace(DEPLOYED[1], began=110, ended=111)),
            accepted=(accepted(kind="map"), accepted(kind="map", index=1, stored_at=200.0)),
            effects=(effect("start", 101, version=1), effect("start", 201, version=1, index=1)),
        ),
    ),
    (
        "I57",
        run(
            accepted=(accepted(workspace=GUEST),),
            deployed=(replace(DEPLOYED[0], workspace=GUEST), *DEPLOYED),
        ),
    ),
    ("L10", flooded(began=101.0)),
    ("L10", flooded(began=150.0, others_at=160.0)),
    ("T12", run(seen=(seen("tried", call=CALL, detail="GET", error="NotFoundError"),))),
    ("T12", run(seen=(seen("listed", call=CALL, detail=MAIN), seen("listed", call="garbage", detail=GUEST)))),
]
BAD: list[tuple[str, Evidence]] = [
    ("I1", run(recorded=())),
    ("I1", run(accepted=(), recorded=())),
    ("I1", run(vanished=("JOURNAL_local_00 3 calls.x",))),
    ("I1", run(seen=(seen("invoke", form="remote"),))),
    ("I2", run(recorded=(recorded(), recorded(OTHER)))),
    ("I2", run(accepted=(), recorded=())),
    ("I2", run(accepted=(accepted(), accepted(pool="po-2")))),
    ("I2", run(counted=(counted(call=OTHER),))),
    (
        "I2",
        run(
            accepted=(accepted(), accepted(OTHER)),
            effects=(effect("start", 101), effect("start", 101, SECOND, call=OTHER)),
        ),
    ),
    ("I3", run(recorded=(recorded(), recorded(nonce=SECOND)))),
    ("I3", run(recorded=(recorded(nonce=SECOND),))),
    ("I3", run(seen=(*RUN.seen, seen("value", 200.0, call=CALL, nonce=SECOND)))),
    ("I3", run(effects=(effect("end", 101.9, op="op-2"),))),
    ("I4", run(effects=(effect("start", 101),))),
    ("I4", run(effects=(effect("end", 101, SECOND),))),
    ("I4b", run(effects=(*RUN.effects, effect("start", 110, SECOND)))),
    ("I5b", AT_ONCE),
    ("I5b", replace(AT_ONCE, happened=(fault("pause-agent", 95, 101.2, node="local-1"),))),
    ("I5", run(counted=(counted(1, stored_at=103.0),))),
    ("I5", run(recorded=(FAILED,), counted=(counted(1), counted(3, stored_at=101.5)))),
    ("I5", run(recorded=(FAILED,), counted=(counted(1), counted(1, stored_at=101.5)))),
    ("I5", run(recorded=(replace(FAILED, node="local-0", stored_at=112.0),), happened=(PAUSED,))),
    ("I5", run(recorded=(), counted=(counted(1, attempt="1-a", stored_at=112.0),), happened=(PAUSED,))),
    ("I6", run(samples=(Sample(at=110, missing=(KEY,)), Sample(at=112, missing=(KEY,))))),
    ("I7", run(samples=tuple(Sample(at=110 + 2 * n, missing=(KEY,)) for n in range(23)))),
    ("I8", run(counted=(counted(3),))),
    ("I8", run(counted=(counted(1, retry_at=105.0),))),
    ("I8", run(counted=(counted(1),), effects=(effect("start", 101), effect("start", 101.3, SECOND)))),
    ("I8", run(counted=(counted(1),), recorded=(FAILED,))),
    ("I8", run(effects=tuple(effect("raise", 101 + n) for n in range(4)))),
    ("I8", run(counted=tuple(counted(0, n, kind="infra") for n in range(1, 10)))),
    ("I10", run(effects=(effect("start", 101), effect("tick", 106)))),
    ("I11", run(accepted=(accepted(deadline=100.5),))),
    ("I11", run(recorded=(EXPIRED,))),
    ("I12", run(seen=(CANCEL,), recorded=(CANCELLED,), effects=(effect("start", 103.0),))),
    ("I12", run(seen=(CANCEL,), recorded=(CANCELLED,), effects=(effect("start", 101), effect("tick", 109)))),
    ("I12", run(seen=(CANCEL,), recorded=(recorded(stored_at=104.0),))),
    ("I14", run(seen=TWICE, accepted=(accepted(), accepted(index=1)))),
    ("I14", run(seen=(*TWICE, seen("ack", call=OTHER)))),
    ("I14", run(seen=(replace(TWICE[0], form="keyed"), *TWICE[1:], seen("ack", call=OTHER)))),
    ("I15", run(recorded=(FAILED,))),
    ("I15", run(letters=((OTHER, 0),))),
    ("I16", replace(POISONED, recorded=(recorded(),))),
    ("I16", replace(POISONED, recorded=())),
    ("I16", replace(POISONED, effects=RUN.effects)),
    ("I17", run(seen=(MAP[0], MAP[2], MAP[1], MAP[3]))),
    ("I17", run(seen=(MAP[0], MAP[1], MAP[1], MAP[2], MAP[3]))),
    ("I17", run(seen=MAP[:3])),
    ("I17", run(seen=(replace(MAP[0], form="unordered"), MAP[2], MAP[2], MAP[3]))),
    ("I17", run(seen=(seen("invoke", form="generator", index=2), seen("item", seq=0), seen("item", seq=0)))),
    ("I17", run(seen=(seen("invoke", form="generator", index=2), seen("item", seq=0)))),
    ("I17", run(seen=(seen("invoke", form="generator", index=2), seen("item", seq=1), seen("error")))),
    ("I18", run(seen=(*RUN.seen[:1], seen("refused", error="ResourceExhaustedError")))),
    (
        "I18",
        run(seen=(seen("invoke", op="op-2"), seen("refused", op="op-2", call=CALL, error="ResourceExhaustedError"))),
    ),
    ("I19", run(blobs={"ab:1": "missing"})),
    ("I19", run(blobs={"ab:1": "different"})),
    ("I21", run(states={CALL: "failed"})),
    ("I21", run(states={CALL: "running"})),
    ("I22", run(settled=replace(SETTLED, settled_at=None, waiting={"WORK_local_00/po-1": (1, 0)}))),
    ("I22", run(settled=replace(SETTLED, settled_at=290.0))),
    ("I22", run(settled=replace(SETTLED, canaries=("canary-0-1",)))),
    ("I43", run(samples=(Sample(at=110, claims={POOL: (0, 1, 2)}),))),
    ("I43", run(samples=(Sample(at=110, claims={POOL: (2,)}),))),
    ("I45", run(settled=replace(SETTLED, empty_at=None, left={POOL: 1}))),
    ("I45", run(settled=replace(SETTLED, empty_at=400.0))),
    ("I48", run(used=(used("lost"),))),
    ("I57", run(deployed=DEPLOYED, effects=(effect("start", 101, version=1),))),
    (
        "I57",
        run(
            accepted=(accepted(), accepted(index=1, function="fu-2")),
            deployed=(DEPLOYED[0], replace(DEPLOYED[1], began=95, ended=110)),
            effects=(effect("start", 101, version=1), effect("start", 101, index=1, version=2)),
        ),
    ),
    ("I57", run(deployed=DEPLOYED, effects=(effect("start", 101, version=2), effect("start", 102, version=1)))),
    ("L10", flooded(began=112.0)),
    ("T12", run(seen=(seen("tried", call=CALL, detail="GET"),))),
    ("T12", run(seen=(seen("tried", call=CALL, detail="GET", error="PermissionDeniedError"),))),
    ("T12", run(seen=(seen("listed", call=CALL, detail=GUEST),))),
]
NEVER = {"I13": "nothing is preempted"}
"""What no run can exercise yet."""


@pytest.mark.parametrize(("name", "evidence"), GOOD + STATE_GOOD)
def test_what_holds_is_ok(name: str, evidence: Evidence) -> None:
    found = verdict(name, evidence)
    assert (found.state, found.violations) == (State.OK, ())
    assert found.checked > 0


@pytest.mark.parametrize(("name", "evidence"), BAD + STATE_BAD)
def test_what_does_not_hold_is_a_violation_with_its_id(name: str, evidence: Evidence) -> None:
    found = verdict(name, evidence)
    assert found.state is State.VIOLATED
    assert all(violation.about and violation.what for violation in found.violations)


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda each: each.name)
def test_a_run_without_evidence_is_never_ok(invariant: object) -> None:
    assert judge(invariant, Evidence()).state is State.NOT_EXERCISED  # type: ignore[arg-type]


def test_every_invariant_is_shown_to_hold_and_to_fail() -> None:
    names = {each.name for each in INVARIANTS}
    assert {name for name, _ in GOOD + STATE_GOOD} == names - set(NEVER)
    assert {name for name, _ in BAD + STATE_BAD} == names - set(NEVER)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("redelivery", lambda: {"effects": (effect("start", 101), effect("start", 110, SECOND))}),
        ("superseded result", lambda: {"effects": (effect("end", 101), effect("end", 110, SECOND))}),
        ("superseded result", lambda: {"told": (Told(call=CALL, index=0, event="superseded", at=110),)}),
        ("agent loss", lambda: {"happened": (fault("kill-agent", 101, 101),)}),
        ("nats restart", lambda: {"happened": (fault("kill-bus", 101, 101),)}),
    ],
)
def test_sometimes_properties_are_met_only_when_they_happened(
    name: str, change: Callable[[], dict[str, object]]
) -> None:
    def times(evidence: Evidence) -> int:
        return {met.name: met.times for met in properties(evidence)}[name]

    assert times(RUN) == 0
    assert times(run(**change())) == 1


@pytest.mark.parametrize(("name", "evidence"), MET)
def test_what_a_run_must_have_met_of_state(name: str, evidence: Evidence) -> None:
    assert next(met.times for met in properties(evidence) if met.name == name) == 1


def test_a_retry_is_no_redelivery() -> None:
    evidence = run(effects=(effect("start", 101), effect("raise", 101.1), effect("start", 102, SECOND)))
    assert properties(evidence)[0].times == 0


def test_the_report_tells_what_was_violated_and_how_to_see_it_again() -> None:
    report = make_report(run(recorded=(), seed=7, seconds=30.0), "squall verify --seed 7 --seconds 30")
    text = as_text(report)

    assert not report.holds
    assert report.counts["lost"] == 1
    assert "VIOLATED. Again: squall verify --seed 7 --seconds 30" in text
    assert f"{CALL}:0: accepted at 100.000, and has no result" in text
    assert "I13  not exercised" in text
