"""Crash-loop back-off: when a pool whose starts fail may try again. Owns no state, does no I/O."""

from __future__ import annotations

from squall_scheduler.state import Trouble

LONGEST_S = 60.0
CALM_S = 60.0
"""A failure so long after the last pause ended is a new story, and counts from 1 again."""


def pause_s(failures: int) -> float:
    """1, 2, 4, 8, 16, 32, 60, 60 .. seconds after the first, second .. failure in a row."""
    return min(LONGEST_S, 2.0 ** min(16, max(0, failures - 1)))


def retry_at(trouble: Trouble) -> float:
    """Before this no new start."""
    return 0.0 if trouble.over else trouble.failed_at + pause_s(trouble.failures)


def after_failure(
    trouble: Trouble | None, *, started_at: float, now: float, reason: str, user_error: bool, killed: bool = False
) -> Trouble:
    """What is known once one more start has failed.

    Containers that were started together and fail together are one failure, or ten of them would mean an hour's pause.
    """
    failures, kills = 1, 0
    together = trouble is not None and started_at <= trouble.failed_at
    if trouble is not None:
        if together:
            failures, kills = trouble.failures, trouble.killed_before
        elif now < trouble.failed_at + pause_s(trouble.failures) + CALM_S:
            failures, kills = trouble.failures + 1, trouble.killed_before
    if user_error:
        kills = 0  # its code ran, and had its say
    elif killed and not together:
        kills += 1
    return Trouble(failures=failures, failed_at=now, reason=reason, user_error=user_error, killed=kills)


def describe(trouble: Trouble, now: float) -> str:
    """One sentence for the waiting user."""
    wait_s = max(0.0, retry_at(trouble) - now)
    return f"{trouble.reason or 'the container did not start'}; next try in {wait_s:.0f} s"
