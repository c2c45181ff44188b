"""Turns at receivers: how many requests one receiver may hold open, and when the others come back. Pure.

A receiver that hangs or is down must not hold up deliveries to others: it has a few slots, and what finds them taken
goes back to the queue until about its turn, by how long requests to that receiver have taken lately. A workspace has
some more: who has many receivers that hang (names cost nothing) holds up nobody else either.
"""

from __future__ import annotations

from dataclasses import dataclass

SLOTS = 8
"""Open requests to one receiver."""
SHARE = 64
"""Open requests of one workspace."""
MIN_WAIT_S, MAX_WAIT_S = 0.5, 600.0
_WEIGHT = 0.2
"""Of the newest request in the mean."""
KNOWN = 10_000


@dataclass(slots=True)
class _Receiver:
    open: int = 0
    mean_s: float = 0.1
    next_turn: float = 0.0


class Turns:
    """One gateway's open requests."""

    def __init__(self, slots: int = SLOTS) -> None:
        self._slots = slots
        self._receivers: dict[str, _Receiver] = {}

    def take(self, endpoint: str, now: float) -> float:
        """0.0: a slot was taken, `give_back` it. Else: come back after so many seconds."""
        receiver = self._receivers.setdefault(endpoint, _Receiver())
        if receiver.open < self._slots:
            receiver.open += 1
            return 0.0
        receiver.next_turn = max(receiver.next_turn, now + MIN_WAIT_S) + receiver.mean_s / self._slots
        return min(receiver.next_turn - now, MAX_WAIT_S)

    def give_back(self, endpoint: str, took_s: float | None, now: float) -> None:
        """A request has ended; None: there was none."""
        receiver = self._receivers[endpoint]
        receiver.open -= 1
        if took_s is not None:
            receiver.mean_s += _WEIGHT * (took_s - receiver.mean_s)
        if len(self._receivers) > KNOWN:
            self._forget(now)

    def _forget(self, now: float) -> None:
        idle = [name for name, each in self._receivers.items() if not each.open and each.next_turn < now]
        for name in idle:
            del self._receivers[name]
