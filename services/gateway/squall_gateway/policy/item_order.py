"""The order of a generator's items: which one comes next, what a new attempt means, what is lost. Pure.

Items travel at most once. Within an attempt each is given once and in order; a new attempt is told, never hidden.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Give:
    """The next item of the present attempt."""


@dataclass(frozen=True, slots=True)
class Restart:
    """The generator runs again; what was given of the earlier attempt is void."""

    attempt: str


@dataclass(frozen=True, slots=True)
class Skip:
    """Nobody wants this one."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Items that never arrived: the sequence cannot go on."""

    first: int
    last: int


class ItemOrder:
    """Where a stream of items stands."""

    def __init__(self) -> None:
        self.attempt = ""
        self.next_seq = 0
        """Also how many items of the attempt were given."""

    def on_item(self, attempt: str, seq: int) -> Give | Restart | Skip | Lost:
        """What to do with an item. After `Restart` ask again with the same item."""
        if attempt != self.attempt:
            if self.attempt and not _is_newer(attempt, self.attempt):
                return Skip("an earlier attempt")
            first = not self.attempt
            self.attempt, self.next_seq = attempt, 0
            if not first:
                return Restart(attempt)
        if seq < self.next_seq:
            return Skip("a repeat")
        if seq > self.next_seq:
            return Lost(self.next_seq, seq - 1)
        self.next_seq += 1
        return Give()

    def missing(self, attempt: str, items: int) -> Lost | None:
        """What is missing of an attempt that yielded `items` in all."""
        given = self.next_seq if attempt == self.attempt else 0
        return Lost(given, items - 1) if given < items else None


def _is_newer(attempt: str, than: str) -> bool:
    """Attempt ids begin with a number that grows with each delivery."""
    return _number(attempt) > _number(than)


def _number(attempt: str) -> int:
    digits = attempt.partition("-")[0]
    return int(digits) if digits.isdigit() else 0
