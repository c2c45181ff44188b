"""A flood ends when enough was refused, and not before unless everything has been sent."""

from __future__ import annotations

import threading

from squall_verify.flooding import SENDERS, flood


class Gateway:
    """Takes so many calls and refuses the rest."""

    def __init__(self, takes: int) -> None:
        self._takes = takes
        self._lock = threading.Lock()
        self.sent: list[int] = []

    def __call__(self, number: int) -> bool:
        with self._lock:
            self.sent.append(number)
            return len(self.sent) <= self._takes


def test_it_goes_on_until_enough_was_refused() -> None:
    gateway = Gateway(takes=250)
    assert flood(3000, 20, gateway) >= 20
    assert 270 <= len(gateway.sent) <= 270 + SENDERS


def test_it_sends_no_call_twice_and_no_more_than_it_may() -> None:
    gateway = Gateway(takes=10**6)
    assert flood(500, 20, gateway) == 0
    assert sorted(gateway.sent) == list(range(500))
