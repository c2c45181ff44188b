"""A flood: more calls of one function at once than the gateways take, until they have refused some."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

SENDERS = 8
"""Faster together than two containers work off what they send, also on a busy machine."""


def flood(most: int, refusals: int, send: Callable[[int], bool]) -> int:
    """Sends calls 0, 1, 2 .. from several threads until so many were refused, or the most have been sent; how many
    were refused. `send` says whether its call was taken."""
    numbers = iter(range(most))
    refused: list[int] = []

    def work() -> None:
        for number in numbers:
            if not send(number):
                refused.append(number)
            if len(refused) >= refusals:
                return

    with ThreadPoolExecutor(SENDERS) as senders:
        for sender in [senders.submit(work) for _ in range(SENDERS)]:
            sender.result()
    return len(refused)
