"""How long the records of a call are kept: longer than anything that can still happen to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squall.spec import CodeRef, FunctionSpec, Kind, RetryPolicy
from squall_contracts.retention import HOUR_S, KEYED_S, SPAWNED_S, journal_ttl_s, result_ttl_s, retry_delays_s


def a_spec(**fields: object) -> FunctionSpec:
    return FunctionSpec(name="f", code=CodeRef("", "m", "f"), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "delays"),
    [
        (RetryPolicy(), 0),
        (RetryPolicy(max_retries=3), 3),
        (RetryPolicy(max_retries=3, initial_delay_s=0), 0),
        (RetryPolicy(max_retries=4, backoff_coefficient=2), 1 + 2 + 4 + 8),
        (RetryPolicy(max_retries=4, backoff_coefficient=10, max_delay_s=60), 1 + 10 + 60 + 60),
        (RetryPolicy(max_retries=10**6, backoff_coefficient=10, max_delay_s=1), 10**6),
    ],
)
def test_the_waits_before_all_retries_add_up(policy: RetryPolicy, delays: float) -> None:
    assert retry_delays_s(policy) == pytest.approx(delays)


def test_the_journal_keeps_an_input_through_queue_start_and_every_attempt() -> None:
    spec = a_spec(queue_limit_s=100, timeout_s=10, startup_timeout_s=20, retry=RetryPolicy(max_retries=2))
    assert journal_ttl_s(spec) == 100 + 3 * 30 + 2 + HOUR_S


POLICIES = st.builds(
    RetryPolicy,
    max_retries=st.integers(0, 50),
    backoff_coefficient=st.floats(1, 10),
    initial_delay_s=st.floats(0, 60),
    max_delay_s=st.floats(1, 60),
)


@given(POLICIES, st.floats(1, 86400), st.floats(1, 86400), st.sampled_from(Kind))
def test_a_result_always_outlives_the_journals_record(
    policy: RetryPolicy, timeout_s: float, queue_limit_s: float, kind: Kind
) -> None:
    spec = a_spec(retry=policy, timeout_s=timeout_s, queue_limit_s=queue_limit_s)

    assert result_ttl_s(spec, kind) >= journal_ttl_s(spec) + HOUR_S
    assert result_ttl_s(spec, Kind.SPAWN) >= SPAWNED_S
    assert result_ttl_s(spec, kind, keyed=True) >= max(KEYED_S, result_ttl_s(spec, kind))


@given(POLICIES)
def test_the_sum_is_that_of_the_single_waits(policy: RetryPolicy) -> None:
    single = [
        min(policy.initial_delay_s * policy.backoff_coefficient**n, policy.max_delay_s)
        for n in range(policy.max_retries)
    ]
    assert retry_delays_s(policy) == pytest.approx(sum(single))
