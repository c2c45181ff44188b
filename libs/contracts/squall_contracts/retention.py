"""How long the records of a call are kept. Pure functions of what its function declares; whoever writes asks here."""

from __future__ import annotations

from squall.spec import FunctionSpec, Kind, RetryPolicy

HOUR_S = 3600.0
SPAWNED_S = 7 * 24 * HOUR_S
"""Results of spawned calls; also the age beyond which an unknown call id is called expired, not unknown."""

KEYED_S = 25 * HOUR_S
"""Results of calls with an idempotency key, which is known for 24 h."""


def retry_delays_s(policy: RetryPolicy) -> float:
    """Sum of the waits before all retries of one input."""
    total, delay = 0.0, policy.initial_delay_s
    for done in range(policy.max_retries):
        if delay >= policy.max_delay_s or (policy.backoff_coefficient == 1.0 and done):
            return total + (policy.max_retries - done) * min(delay, policy.max_delay_s)
        total += delay
        delay *= policy.backoff_coefficient
    return total


def journal_ttl_s(spec: FunctionSpec) -> float:
    """Longer than any input can be queued and run. It only cleans up: the deadline header decides expiry."""
    one_attempt_s = spec.startup_timeout_s + spec.timeout_s
    attempts_s = (spec.retry.max_retries + 1) * one_attempt_s
    return spec.queue_limit_s + attempts_s + retry_delays_s(spec.retry) + HOUR_S


def result_ttl_s(spec: FunctionSpec, kind: Kind, *, keyed: bool = False) -> float:
    """Results outlive the journal, so that an input without a result was never finished; and idempotency keys, so that
    a call with a key that is still known is not made again."""
    outlives_s = max(journal_ttl_s(spec) + HOUR_S, KEYED_S if keyed else 0.0)
    return max(SPAWNED_S, outlives_s) if kind is Kind.SPAWN else outlives_s
