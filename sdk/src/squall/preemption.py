"""Trying out what a program does when its machine is taken away: an interrupt at a time of one's choice."""

from __future__ import annotations

import random
import signal
import threading
from types import FrameType
from typing import NoReturn, Optional

from squall.errors import InvalidError

KILLED_AFTER_S = 30
"""How long a container has after the first interrupt."""


def simulate_preemption(wait_seconds: int, jitter_seconds: int = 0) -> None:
    """Interrupt this process after `wait_seconds`, and up to `jitter_seconds` more: `KeyboardInterrupt` where its main
    thread is, and once more 30 s later, when a container would be killed. Raises `ValueError` for no time to wait."""
    if wait_seconds <= 0:
        raise ValueError(f"simulate_preemption: wait_seconds must be more than 0, got {wait_seconds!r}")
    if threading.current_thread() is not threading.main_thread():
        raise InvalidError(
            "simulate_preemption interrupts the main thread, and must be called there",
            fix="Call it at the top of the function, and leave out @squall.concurrent.",
        )
    signal.signal(signal.SIGALRM, _interrupt)
    jitter = random.randrange(jitter_seconds) if jitter_seconds else 0
    signal.alarm(int(wait_seconds) + jitter)


def _interrupt(_number: int, _frame: Optional[FrameType]) -> NoReturn:
    signal.alarm(KILLED_AFTER_S)
    raise KeyboardInterrupt("a simulated preemption")
