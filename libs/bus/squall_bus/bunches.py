"""A second connection, for what comes often and does not matter at once: the process is not woken for each message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from squall_bus.consume import run_callback
from squall_bus.link import Link
from squall_bus.records import BusStats
from squall_bus.settings import BusSettings

PAUSE_S = 0.1
"""At most so late, and so rarely: ten times a second instead of twice for every call."""


class Bunches:
    """Opened when somebody listens in bunches."""

    def __init__(self, settings: BusSettings, tasks: asyncio.TaskGroup) -> None:
        self._settings = replace(settings, name=f"{settings.name} (bunches)")
        self._tasks = tasks
        self._opening = asyncio.Lock()
        self._link: Link | None = None
        self._stats = BusStats()
        self._reconnect_callbacks: dict[object, Callable[[], None]] = {}

    async def link(self) -> Link:
        """The connection."""
        async with self._opening:
            if self._link is None:
                link = Link(self._settings, self._tasks, PAUSE_S)
                await link.open()
                link.on_reconnect(self._reconnected)
                self._link, self._stats = link, link.stats
            return self._link

    def _reconnected(self) -> None:
        for callback in list(self._reconnect_callbacks.values()):
            run_callback(lambda _: callback(), None, self._stats)  # noqa: B023  # called at once

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each reconnect of this connection, if there is one; returns what stops it."""
        key = object()
        self._reconnect_callbacks[key] = callback

        def stop() -> None:
            self._reconnect_callbacks.pop(key, None)

        return stop

    async def close(self) -> None:
        if self._link is not None:
            await self._link.close()
