"""Admission: what is taken, what is refused, and in which order the reasons come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squall.errors import (
    ConflictError,
    InvalidError,
    RequestSizeError,
    ResourceExhaustedError,
    ServiceError,
    SquallError,
    StorageFullError,
)
from squall.spec import Kind
from squall_gateway.policy.admission import Admitted, Limits, Refused, Situation, Wanted, admit

CALM = Situation(app="ap-1", app_state="deployed")
LIMITS = Limits(pending=100, pending_sync=10, inline_bytes=1000, payload_bytes=5000)


def decide(wanted: Wanted, situation: Situation = CALM, limits: Limits = LIMITS) -> Admitted | Refused:
    return admit(wanted, situation, limits, queue_limit_s=60, now=1000.0)


def refusal(wanted: Wanted, situation: Situation = CALM) -> SquallError:
    decision = decide(wanted, situation)
    assert isinstance(decision, Refused)
    return decision.error


def situation(**fields: object) -> Situation:
    return Situation(**{"app": "ap-1", "app_state": "ephemeral", **fields})  # type: ignore[arg-type]


def test_an_admitted_input_has_its_deadline() -> None:
    assert decide(Wanted(kind=Kind.SPAWN)) == Admitted(1060.0)


@pytest.mark.parametrize(
    ("wanted", "now", "error", "words"),
    [
        (Wanted(kind=Kind.MAP, inputs=0), CALM, InvalidError, "no inputs"),
        (Wanted(kind=Kind.REMOTE, is_generator=True), CALM, InvalidError, "is a generator"),
        (Wanted(kind=Kind.MAP, is_generator=True), CALM, InvalidError, "is a generator"),
        (Wanted(kind=Kind.GENERATOR), CALM, InvalidError, "not a generator"),
        (Wanted(kind=Kind.REMOTE, inline_bytes=1001), CALM, RequestSizeError, "1001"),
        (Wanted(kind=Kind.REMOTE, blob_bytes=5001), CALM, RequestSizeError, "5001"),
        (Wanted(kind=Kind.REMOTE), situation(app_state="stopped"), ConflictError, "ap-1 is stopped"),
        (Wanted(kind=Kind.REMOTE), situation(storage_full="the disk"), StorageFullError, "the disk"),
        (Wanted(kind=Kind.REMOTE), situation(bus_down_s=1.5), ServiceError, "1.5 s"),
        (Wanted(kind=Kind.SPAWN), situation(pending=100), ResourceExhaustedError, "100"),
        (Wanted(kind=Kind.SPAWN, inputs=51), situation(pending=50), ResourceExhaustedError, "50"),
        (Wanted(kind=Kind.SPAWN, inputs=101), CALM, RequestSizeError, "a function may have 100 pending"),
        (Wanted(kind=Kind.MAP, inputs=11), CALM, RequestSizeError, "a function may have 10 pending"),
        (Wanted(kind=Kind.REMOTE), situation(pending=50, pending_sync=10), ResourceExhaustedError, "10"),
    ],
)
def test_every_refusal_has_its_class_and_says_what_is_wrong(
    wanted: Wanted, now: Situation, error: type[SquallError], words: str
) -> None:
    found = refusal(wanted, now)

    assert type(found) is error
    assert words in found.message
    assert "{" not in found.hint


def test_spawned_calls_do_not_count_against_those_that_somebody_waits_for() -> None:
    full_of_spawned = situation(pending=90, pending_sync=0)
    assert isinstance(decide(Wanted(kind=Kind.REMOTE), full_of_spawned), Admitted)


def test_a_stale_count_of_waited_for_inputs_refuses_nobody_when_the_queue_is_short() -> None:
    finished_elsewhere = situation(pending=2, pending_sync=500)
    assert isinstance(decide(Wanted(kind=Kind.REMOTE), finished_elsewhere), Admitted)


def test_what_the_caller_can_correct_is_told_before_what_only_time_can() -> None:
    worst = situation(app_state="stopped", storage_full="the disk", bus_down_s=9, pending=1000, pending_sync=1000)

    assert isinstance(refusal(Wanted(kind=Kind.REMOTE, inline_bytes=10**6), worst), RequestSizeError)
    assert isinstance(refusal(Wanted(kind=Kind.REMOTE), worst), ConflictError)


WANTED = st.builds(
    Wanted,
    kind=st.sampled_from(Kind),
    inputs=st.integers(0, 1000),
    inline_bytes=st.integers(0, 2000),
    blob_bytes=st.integers(0, 10_000),
    is_generator=st.booleans(),
)
SITUATIONS = st.builds(
    Situation,
    app=st.just("ap-1"),
    app_state=st.sampled_from(["ephemeral", "detached", "deployed", "stopped"]),
    pending=st.integers(0, 200),
    pending_sync=st.integers(0, 200),
    storage_full=st.sampled_from(["", "full"]),
    bus_down_s=st.floats(0, 10),
)


@given(WANTED, SITUATIONS)
def test_nothing_is_admitted_beyond_any_limit(wanted: Wanted, now: Situation) -> None:
    if isinstance(decide(wanted, now), Refused):
        return
    assert now.pending + wanted.inputs <= LIMITS.pending
    assert wanted.kind is Kind.SPAWN or min(now.pending, now.pending_sync) + wanted.inputs <= LIMITS.pending_sync
    assert wanted.inline_bytes <= LIMITS.inline_bytes
    assert wanted.blob_bytes <= LIMITS.payload_bytes
    assert now.app_state != "stopped"
    assert not now.storage_full
    assert now.bus_down_s <= 1.0
    assert wanted.is_generator == (wanted.kind is Kind.GENERATOR)


@given(WANTED, SITUATIONS)
def test_what_is_admitted_in_a_situation_is_admitted_in_a_better_one(wanted: Wanted, now: Situation) -> None:
    better = Situation(app=now.app, app_state="deployed")
    if isinstance(decide(wanted, now), Admitted):
        assert isinstance(decide(wanted, better), Admitted)


@given(WANTED, SITUATIONS)
def test_retryable_refusals_are_exactly_those_that_pass_by_themselves(wanted: Wanted, now: Situation) -> None:
    decision = decide(wanted, now)
    if isinstance(decision, Refused) and not decision.error.retryable:
        assert isinstance(decide(wanted, Situation(app="ap-1", app_state=now.app_state)), Refused)
