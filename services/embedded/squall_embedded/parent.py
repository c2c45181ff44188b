"""Notices that nobody wants the platform any more: a signal, or the end of the process that started it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable

POLL_S = 0.5


def stop_on_signals(stop: Callable[[], None]) -> None:
    """SIGTERM and SIGINT stop the platform in order."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


async def until_parent_is_gone(parent: int) -> None:
    """Returns when standard input closes, or when another process has become our parent.

    The second is for a parent that was killed while a child of its own still holds the other end of the pipe.
    """
    loop, closed = asyncio.get_running_loop(), asyncio.Event()
    descriptor = sys.stdin.fileno()

    def on_readable() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            closed.set()

    os.set_blocking(descriptor, False)
    try:
        loop.add_reader(descriptor, on_readable)
    except PermissionError:  # a file such as /dev/null cannot be waited for: nobody will ever close it
        closed.set()
    while os.getppid() == parent and not closed.is_set():
        try:
            async with asyncio.timeout(POLL_S):
                await closed.wait()
        except TimeoutError:
            continue
