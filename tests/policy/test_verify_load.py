"""The mixed load of `squall verify`: its plan, and its summary of what callers met."""

from __future__ import annotations

import pytest

from squall_verify.evidence import Accepted, Deployed, Effect, Evidence, Recorded, Seen
from squall_verify.invariants.clients import atomic_deploy
from squall_verify.load import by_form, slowest, table
from squall_verify.mixed import make_mixed_plan
from squall_verify.plan import FORMS


def test_a_plan_is_its_seed_s() -> None:
    assert make_mixed_plan(7, 60) == make_mixed_plan(7, 60)
    assert make_mixed_plan(7, 60) != make_mixed_plan(8, 60)


@pytest.mark.parametrize("seconds", [30.0, 600.0])
def test_every_plan_has_each_act_and_a_lost_node(seconds: float) -> None:
    plan = make_mixed_plan(1, seconds)

    assert [act.name for act in plan.acts[:5]] == ["scale", "scale", "deploy", "rollback", "drain"]
    assert {fault.name for fault in plan.faults} == {"kill-agent"}
    assert all(each.at_s < seconds for each in (*plan.acts, *plan.faults))
    versions = [act.given["version"] for act in plan.acts if act.name == "deploy"]
    assert versions == list(range(2, len(versions) + 2))


def test_ten_minutes_have_every_form_of_call() -> None:
    assert {operation.form for operation in make_mixed_plan(1, 600).operations} >= set(FORMS)


def seen(op: str, what: str, at: float, **more: object) -> Seen:
    return Seen(op=op, what=what, at=at, **more)  # type: ignore[arg-type]


def accepted(call: str, index: int = 0, kind: str = "spawn") -> Accepted:
    return Accepted(
        call=call, index=index, pool="po-1", function="fu-1", kind=kind, stored_at=1.0 + index, deadline=99.0
    )


def recorded(call: str, index: int = 0, outcome: str = "succeeded", at: float = 5.0) -> Recorded:
    return Recorded(call=call, index=index, outcome=outcome, attempt="1-a", stored_at=at)


def start(call: str, op: str, attempt: int = 1) -> Effect:
    return Effect(
        what="start",
        call=call,
        index=0,
        attempt=attempt,
        nonce=f"nx-{attempt}",
        at=2.0,
        pid=1,
        op=op,
        function="plain",
        version=1,
    )


EVIDENCE = Evidence(
    seen=(
        seen("op-1", "invoke", 1.0, form="spawn"),
        seen("op-1", "ack", 1.1, call="fc-a"),
        seen("op-1", "done", 3.0),
        seen("op-2", "invoke", 1.0, form="cancel"),
        seen("op-2", "ack", 1.1, call="fc-b"),
        seen("op-2", "error", 2.0),
        seen("op-3", "invoke", 1.0, form="pry"),
        seen("op-3", "listed", 1.5, call="fc-b"),
        seen("op-3", "done", 1.6),
        seen("op-4", "invoke", 1.0, form="remote"),
        seen("op-4", "refused", 1.1),
    ),
    accepted=(accepted("fc-a"), accepted("fc-b"), accepted("fc-c"), accepted("fc-d")),
    recorded=(recorded("fc-a"), recorded("fc-b", outcome="cancelled", at=2.0), recorded("fc-c", at=4.0)),
    effects=(start("fc-a", "op-1"), start("fc-a", "op-1", attempt=2), start("fc-c", "op-1/0")),
)


def test_each_accepted_input_is_counted_once_with_its_end() -> None:
    forms = {form.name: form for form in by_form(EVIDENCE)}

    assert {name: dict(form.ends) for name, form in forms.items() if form.inputs} == {
        "spawn": {"succeeded": 1},
        "spawn, from inside": {"succeeded": 1},
        "cancel": {"cancelled": 1},
        "no operation": {"LOST": 1},
    }
    assert sum(form.inputs for form in forms.values()) == len(EVIDENCE.accepted)
    assert (forms["spawn"].again, forms["cancel"].again) == (1, 0)
    assert (forms["remote"].refused, forms["remote"].took_s) == (1, [])


def test_times_are_those_of_callers() -> None:
    forms = {form.name: form for form in by_form(EVIDENCE)}

    assert forms["spawn"].percentile(0.99) == 2.0
    assert forms["cancel"].percentile(0.5) == 1.0
    assert len(table(list(forms.values()))) == len(forms) + 1


def test_the_slowest_call_is_the_longest_from_acceptance_to_record() -> None:
    assert slowest(EVIDENCE) == ("fc-a", 4.0)
    assert slowest(Evidence()) is None


def test_after_a_rollback_the_older_version_is_the_present_one() -> None:
    history = (
        Deployed(version=1, began=0.0, ended=1.0),
        Deployed(version=2, began=100.0, ended=101.0),
        Deployed(version=1, began=200.0, ended=201.0),
    )

    def ran(version: int) -> int:
        effect = Effect(
            what="start",
            call="fc-z",
            index=0,
            attempt=1,
            nonce="nx-1",
            at=300.0,
            pid=1,
            op="op-9",
            function="plain",
            version=version,
        )
        at = Accepted(call="fc-z", index=0, pool="po-1", function="fu-1", kind="spawn", stored_at=300.0, deadline=999.0)
        return len(atomic_deploy(Evidence(accepted=(at,), effects=(effect,), deployed=history)).violations)

    assert ran(1) == 0
    assert ran(2) == 1
