"""Retries: what becomes of an input after a failed attempt. Pure: failures so far and the failure in, decision out.

User failures (exceptions and time-outs) use up the function's retries. Infrastructure failures (crash, OOM kill, lost
or preempted container) never do; they have a cap of their own, so that an input that kills every container ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from squall.spec import MAX_INFRA_FAILURES, Outcome, RetryPolicy

MOST_KILLED_STARTS = 8
"""Starts of a pool in a row that may be killed, with none of its containers ready in between, before its calls fail.
Their pauses are 1, 2, 4 .. 60 s: two minutes in all."""
MAX_BACKOFF_EXPONENT = 64
"""10^64 is far over any `max_delay_s`; a larger exponent would overflow a float for functions with 1,000 retries."""


class Cause(StrEnum):
    """Why an attempt failed."""

    EXCEPTION = "exception"
    """User code raised."""
    TIMEOUT = "timeout"
    """It ran longer than the function's `timeout`."""
    DATA = "data"
    """Arguments or result cannot be (de)serialised: the next attempt would end the same way."""
    INFRA = "infra"
    """Its container died, or was taken away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Failed attempts of one input so far, as ATTEMPTS tells."""

    user: int = 0
    infra: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed attempt."""

    cause: Cause
    detail: str
    """What happened, in words for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryAt:
    """Count it, then give it back to the queue, not to be delivered before `at`."""

    at: float
    delay_s: float
    totals: Totals
    """Including this failure."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HandBack:
    """Count it as infrastructure failure, then give it back to the queue at once."""

    totals: Totals
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """This failure is the input's result."""

    outcome: Outcome
    totals: Totals
    reason: str


Decision = RetryAt | HandBack | GiveUp


def decide(
    policy: RetryPolicy,
    totals: Totals,
    failure: Failure,
    *,
    now: float,
    max_infra_failures: int = MAX_INFRA_FAILURES,
) -> Decision:
    """What to do after `failure`, given the failures before it."""
    if failure.cause is Cause.INFRA:
        return _after_infra(totals, failure, max_infra_failures)
    outcome = Outcome.TIMED_OUT if failure.cause is Cause.TIMEOUT else Outcome.FAILED
    after = replace(totals, user=totals.user + 1)
    if failure.cause is Cause.DATA:
        return GiveUp(outcome=outcome, totals=after, reason=f"{failure.detail}; another attempt would end the same way")
    if after.user > policy.max_retries:
        return GiveUp(outcome=outcome, totals=after, reason=_out_of_retries(policy, failure))
    delay_s = delay_before(policy, after.user)
    reason = f"{failure.detail}; retry {after.user} of {policy.max_retries} in {delay_s:g} s"
    return RetryAt(at=now + delay_s, delay_s=delay_s, totals=after, reason=reason)


def delay_before(policy: RetryPolicy, retry: int) -> float:
    """Seconds before retry number `retry` (from 1): initial x coefficient^(retry - 1), at most `max_delay_s`."""
    exponent = min(retry - 1, MAX_BACKOFF_EXPONENT)
    return float(min(policy.initial_delay_s * policy.backoff_coefficient**exponent, policy.max_delay_s))


def _after_infra(totals: Totals, failure: Failure, cap: int) -> Decision:
    after = replace(totals, infra=totals.infra + 1)
    if after.infra >= cap:
        reason = f"lost {after.infra} times to the infrastructure, the most allowed; last: {failure.detail}"
        return GiveUp(outcome=Outcome.FAILED, totals=after, reason=reason)
    return HandBack(totals=after, reason=f"{failure.detail}; back to the queue ({after.infra} of {cap})")


def _out_of_retries(policy: RetryPolicy, failure: Failure) -> str:
    if not policy.max_retries:
        return f"{failure.detail}; the function has no retries"
    return f"{failure.detail}; all {policy.max_retries} retries are used"
