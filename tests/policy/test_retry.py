"""What becomes of an input after a failed attempt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squall.spec import MAX_INFRA_FAILURES, Outcome, RetryPolicy
from squall_gpu_agent.policy.retry import (
    Cause,
    Decision,
    Failure,
    GiveUp,
    HandBack,
    RetryAt,
    Totals,
    decide,
    delay_before,
)

NONE = RetryPolicy()
THREE = RetryPolicy(max_retries=3)
RAISED = Failure(cause=Cause.EXCEPTION, detail="raised ValueError: boom")
CRASHED = Failure(cause=Cause.INFRA, detail="its container ended: killed by SIGSEGV")

policies = st.builds(
    RetryPolicy,
    max_retries=st.integers(0, 20),
    backoff_coefficient=st.floats(1, 10),
    initial_delay_s=st.floats(0, 60),
    max_delay_s=st.floats(1, 60),
)
failures = st.builds(Failure, cause=st.sampled_from(Cause), detail=st.just("it failed"))


def test_without_retries_the_first_exception_is_the_result() -> None:
    decision = decide(NONE, Totals(), RAISED, now=100)
    assert decision == GiveUp(
        outcome=Outcome.FAILED, totals=Totals(user=1), reason="raised ValueError: boom; the function has no retries"
    )


def test_a_retry_waits_for_its_delay_and_says_which_one_it_is() -> None:
    decision = decide(THREE, Totals(user=1), RAISED, now=100)
    assert decision == RetryAt(
        at=101, delay_s=1, totals=Totals(user=2), reason="raised ValueError: boom; retry 2 of 3 in 1 s"
    )


def test_the_last_of_three_retries_is_the_result() -> None:
    decision = decide(THREE, Totals(user=3), RAISED, now=100)
    assert isinstance(decision, GiveUp)
    assert decision.reason.endswith("all 3 retries are used")


@pytest.mark.parametrize(("retry", "delay_s"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (1000, 10)])
def test_delays_grow_up_to_their_limit(retry: int, delay_s: float) -> None:
    policy = RetryPolicy(max_retries=1000, backoff_coefficient=2, initial_delay_s=1, max_delay_s=10)
    assert delay_before(policy, retry) == delay_s


def test_a_time_out_is_retried_like_an_exception_and_ends_timed_out() -> None:
    slow = Failure(cause=Cause.TIMEOUT, detail="ran longer than its timeout")
    assert isinstance(decide(THREE, Totals(), slow, now=0), RetryAt)
    decision = decide(THREE, Totals(user=3), slow, now=0)
    assert isinstance(decision, GiveUp)
    assert decision.outcome is Outcome.TIMED_OUT


def test_arguments_that_cannot_be_loaded_are_not_tried_again() -> None:
    decision = decide(THREE, Totals(), Failure(cause=Cause.DATA, detail="no module x"), now=0)
    assert isinstance(decision, GiveUp)


def test_a_crash_uses_no_retry_and_goes_back_at_once() -> None:
    decision = decide(NONE, Totals(), CRASHED, now=0)
    assert isinstance(decision, HandBack)
    assert decision.totals == Totals(infra=1)


def test_the_eighth_loss_is_the_result() -> None:
    decision = decide(THREE, Totals(user=1, infra=7), CRASHED, now=0)
    assert isinstance(decision, GiveUp)
    assert (decision.outcome, decision.totals) == (Outcome.FAILED, Totals(user=1, infra=8))


@given(policies, st.integers(0, 30), st.integers(0, 10), failures, st.floats(0, 2e9))
def test_every_decision_has_a_reason_and_counts_exactly_one_failure(
    policy: RetryPolicy, user: int, infra: int, failure: Failure, now: float
) -> None:
    decision = decide(policy, Totals(user=user, infra=infra), failure, now=now)
    assert failure.detail in decision.reason
    assert decision.totals.user + decision.totals.infra == user + infra + 1
    if isinstance(decision, RetryAt):
        assert 0 <= decision.delay_s <= policy.max_delay_s
        assert decision.at == now + decision.delay_s


@given(policies, st.lists(failures, min_size=200, max_size=200))
def test_no_input_is_tried_more_often_than_retries_and_cap_allow(policy: RetryPolicy, ahead: list[Failure]) -> None:
    totals, attempts = Totals(), 0
    for failure in ahead:
        attempts += 1
        decision: Decision = decide(policy, totals, failure, now=0)
        if isinstance(decision, GiveUp):
            break
        totals = decision.totals
        assert totals.user <= policy.max_retries
        assert totals.infra < MAX_INFRA_FAILURES
    assert attempts <= policy.max_retries + MAX_INFRA_FAILURES
