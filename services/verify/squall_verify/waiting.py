"""Waiting for something outside of this process to become true."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
POLL_S = 0.01


class NotInTime(AssertionError):
    """It did not become true; the message says what was waited for."""


def eventually(check: Callable[[], T | None], *, within_s: float = 30.0, what: object = "") -> T:
    """Call `check` until it returns something true, and hand that back. `what` or its answer explains a failure."""
    until = time.monotonic() + within_s
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > until:
            told = what() if callable(what) else what
            raise NotInTime(f"not within {within_s} s: {told or check}; last answer {value!r}")
        time.sleep(POLL_S)
