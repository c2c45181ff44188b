"""The plan of `squall verify`: decided by its seed alone, and it contains what a run must meet."""

from __future__ import annotations

import pytest

from squall_verify.faults import REGISTRY
from squall_verify.invariants.attempts import LEASE_S
from squall_verify.plan import CLIENTS, FORMS, GUEST_CLIENT, make_plan
from squall_verify.settings import parse

EVERY = list(REGISTRY.values())
SEEDS = range(50)


def test_a_seed_is_one_plan() -> None:
    assert make_plan(3, 45, EVERY) == make_plan(3, 45, EVERY)
    assert make_plan(3, 45, EVERY) != make_plan(4, 45, EVERY)


def test_another_choice_of_faults_leaves_the_operations_as_they_are() -> None:
    chosen = make_plan(3, 45, [REGISTRY["kill-gateway"]])
    assert chosen.operations == make_plan(3, 45, EVERY).operations
    assert {fault.name for fault in chosen.faults} == {"kill-gateway"}


def test_a_fault_that_is_never_drawn_is_injected_when_it_is_asked_for_by_name() -> None:
    rare = next(each for each in EVERY if not each.weight)
    assert {fault.name for fault in make_plan(3, 45, [rare]).faults} == {rare.name}
    assert rare.name not in {fault.name for fault in make_plan(3, 45, EVERY).faults}


@pytest.mark.parametrize("seed", SEEDS)
def test_every_plan_forces_what_must_be_met(seed: int) -> None:
    plan = make_plan(seed, 45, EVERY)
    names = [fault.name for fault in plan.faults]

    assert {"kill-agent", "kill-bus", "garbage-call", "late-call"} <= set(names)
    paused = [fault for fault in plan.faults if fault.name == "pause-agent" and fault.for_s > LEASE_S]
    assert any(
        fault.at_s - 2 < operation.at_s < fault.at_s + 1
        for fault in paused
        for operation in plan.operations
        if operation.form == "steady"
    )
    assert all(0 <= operation.at_s <= 45 for operation in plan.operations)
    claiming = [operation for operation in plan.operations if operation.given.get("claims")]
    assert {operation.client for operation in claiming} == set(range(CLIENTS))
    assert len({operation.given["group"] for operation in claiming}) == 1


def test_all_seeds_together_draw_every_form_and_every_fault() -> None:
    plans = [make_plan(seed, 45, EVERY) for seed in SEEDS]
    assert {operation.form for plan in plans for operation in plan.operations} == {*FORMS, "steady", "flood"}
    assert {fault.name for plan in plans for fault in plan.faults} == {each.name for each in EVERY if each.weight}


def test_the_other_workspace_calls_too() -> None:
    guests = [each for seed in SEEDS for each in make_plan(seed, 45, EVERY).operations if each.client == GUEST_CLIENT]
    assert {operation.form for operation in guests} == set(FORMS)


def test_the_report_names_a_command_that_makes_the_same_plan() -> None:
    settings = parse(["--seed", "7", "--minutes", "1.5", "--faults", "kill-bus,kill-agent"])
    assert settings.command == "squall verify --seed 7 --seconds 90 --faults kill-bus,kill-agent"
    assert parse(settings.command.split()[2:]) == settings


@pytest.mark.parametrize(
    "arguments", [["--seed", "x"], ["--seconds", "0"], ["--seconds", "9", "--minutes", "1"], ["--agents", "1"]]
)
def test_nonsense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(arguments)
    assert refused.value.code == 2
    assert "error:" in capsys.readouterr().err
