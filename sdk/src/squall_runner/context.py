"""Which input is being executed: the one place that user-facing functions (`squall.current_input_id()`) ask.

Owns the context variable and the set of running inputs. Works in async tasks, in the runner's threads, and,
while a single input runs, also in threads that user code started.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import Callable, Optional


class CurrentInput:
    """Identity of the input that the calling code belongs to."""

    __slots__ = ("attempt", "call", "index", "traceparent")

    def __init__(self, call: str, index: int, attempt: int, traceparent: str = "") -> None:
        self.call = call
        self.index = index
        self.attempt = attempt
        self.traceparent = traceparent
        """W3C context of the attempt's span; calls made by this code are its children."""


_current: ContextVar[Optional[CurrentInput]] = ContextVar("squall_current_input", default=None)
_running: dict[tuple[str, int], CurrentInput] = {}
_enough: list[Callable[[], None]] = []
"""What says that this container is to get no more inputs; empty where this process gets none."""


class running:
    """Context manager: within it, code belongs to this input."""

    def __init__(self, current: CurrentInput) -> None:
        self._current = current

    def __enter__(self) -> None:
        _running[self._current.call, self._current.index] = self._current
        self._token = _current.set(self._current)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)
        _running.pop((self._current.call, self._current.index), None)


def current() -> Optional[CurrentInput]:
    """The input that the calling code belongs to; None outside of inputs (import, hooks) and on the client."""
    known = _current.get()
    if known is not None:
        return known
    # A thread of the user's has an empty context; with one input running there is no doubt whose it is.
    values = list(_running.values())
    return values[0] if len(values) == 1 else None


def served_by(enough: Callable[[], None]) -> None:
    """This process serves inputs from now on, until `enough` is called."""
    _enough[:] = [enough]


def stop_fetching_inputs() -> bool:
    """Have no more inputs given to this container; False where this process is none."""
    for enough in _enough:
        enough()
    return bool(_enough)


def current_function_call_id() -> Optional[str]:
    """The call's id, or None outside of an input."""
    known = current()
    return known.call if known else None


def current_input_id() -> Optional[str]:
    """`<call>:<index>`, or None outside of an input."""
    known = current()
    return f"{known.call}:{known.index}" if known else None


def is_local() -> bool:
    """False inside a container, also in subprocesses there; True everywhere else."""
    return os.environ.get("SQUALL_CONTAINER") != "1"
