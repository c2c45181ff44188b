"""Stopping a synchronous input: `InputCancellation` raised in the main thread by a signal.

Owns the signal and the moments at which it may raise: only in user code of the input that is meant, never
inside the runner's own writes, where half a frame on the socket would end the container.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any, Optional

Key = tuple[str, int]

INSIST_S = 0.02

# A real-time signal: user code and libraries claim SIGUSR1 and SIGUSR2.
SIGNAL = signal.SIGRTMIN + 3 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR1


class _Cancellation(BaseException):
    """Used when user code never imported squall and so cannot name squall's own class."""


def cancellation_types() -> tuple[type[BaseException], ...]:
    """Classes that mean "this input was cancelled" when they come out of user code."""
    # squall_runner does not import the SDK; but when user code did, it may catch the SDK's class by name.
    found = getattr(sys.modules.get("squall.errors"), "InputCancellation", None)
    return (found, _Cancellation) if found is not None else (_Cancellation,)


class Interrupter:
    """Made once, in the main thread."""

    def __init__(self) -> None:
        self._main = threading.get_ident()
        self._armed: Optional[Key] = None
        self._wanted: Optional[Key] = None
        self._shields = 0
        self._late = False
        self._noticed = threading.Event()

    def install(self) -> None:
        """Take the signal. Main thread only."""
        signal.signal(SIGNAL, self._on_signal)

    def armed(self, key: Key) -> _Armed:
        """Context manager: within it, `request(key)` raises. Main thread only."""
        return _Armed(self, key)

    def arm(self, key: Optional[Key]) -> None:
        """None: nothing raises any more. See `armed`."""
        if key is not None:
            self._noticed.clear()
            self._armed = key
        else:
            self._armed, self._wanted, self._late = None, None, False
            self._noticed.set()

    def request(self, key: Key) -> bool:
        """Raise in that input's code, from any thread. False if it is not the one that is running."""
        if self._armed != key:
            return False
        if self._wanted != key:
            self._wanted = key
            threading.Thread(target=self._insist, args=(key,), name="squall-interrupt", daemon=True).start()
        return True

    def __enter__(self) -> None:
        """Shield: a request waits until the end of the `with` block."""
        if threading.get_ident() == self._main:
            self._shields += 1

    def __exit__(self, *_: object) -> None:
        if threading.get_ident() == self._main:
            self._shields -= 1
            if self._late and not self._shields:
                self._raise()

    def _insist(self, key: Key) -> None:
        """Signal until it was noticed: one that arrives just before a blocking system call does not interrupt it."""
        while self._wanted == key:
            signal.pthread_kill(self._main, SIGNAL)
            self._noticed.wait(INSIST_S)

    def _on_signal(self, _signum: int, _frame: Any) -> None:
        if self._wanted is None or self._wanted != self._armed:
            return  # the input ended before the signal arrived
        if self._shields:
            self._late = True
        else:
            self._raise()

    def _raise(self) -> None:
        self._late, self._wanted = False, None
        self._noticed.set()
        raise cancellation_types()[0]("the call was cancelled")


class _Armed:
    # Not a generator with `contextlib`: this is entered for each input.
    def __init__(self, interrupter: Interrupter, key: Key) -> None:
        self._interrupter = interrupter
        self._key = key

    def __enter__(self) -> None:
        self._interrupter.arm(self._key)

    def __exit__(self, *_: object) -> None:
        self._interrupter.arm(None)
