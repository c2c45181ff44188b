"""What an engine is to the driver. One module per engine, imported in its venv alone; standard library only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

Task = Literal["noop", "work"]


class NotOffered(Exception):
    """The engine has no such way of calling. The text goes into the table."""


class Engine(ABC):
    """One engine, started on this machine with two worker processes, and its one client."""

    @abstractmethod
    def start(self, folder: Path) -> dict[str, str]:
        """Start everything below `folder`; what it says about itself. Workers get ready at a first call, or before."""

    @abstractmethod
    def stop(self) -> None:
        """End what was started."""

    @abstractmethod
    def call(self, value: object) -> object:
        """Call a function that returns its argument, and wait for the value."""

    @abstractmethod
    def fan_out(self, task: Task, count: int, limit_s: float) -> list[object]:
        """Call it for each of `range(count)` at once; the values in order, all of them or those had after `limit_s`."""

    @abstractmethod
    def enqueue(self, value: object) -> None:
        """Hand over one call without waiting for its end. Returns when the engine answers for it, if it ever does."""

    def enqueue_many(self, count: int, limit_s: float) -> int:
        """Hand over `range(count)` as one list; how many were taken."""
        raise NotOffered("no such call")

    def prepare_depth(self, depth: int) -> None:
        """Have so many calls queued that nobody takes."""
        raise NotOffered("not measured")

    def enqueue_deep(self, value: object) -> None:
        """Hand over one call to the queue of `prepare_depth`."""
        raise NotOffered("not measured")
