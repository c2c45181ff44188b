"""Time, as something that is passed in. The only place that asks the machine what time it is."""

from __future__ import annotations

import asyncio
import time
from typing import ClassVar, Protocol


class Clock(Protocol):
    """What loops and handlers may know about time."""

    def now(self) -> float:
        """Unix seconds."""

    def monotonic(self) -> float:
        """Seconds that never jump; only differences mean something."""

    async def sleep(self, seconds: float) -> None:
        """Return after so long."""


class SystemClock:
    """The machine's clock."""

    offset_s: ClassVar[float] = 0.0
    """How far the wall clock of this process is off: for `squall verify`, which lets it jump (failpoints.py)."""

    def now(self) -> float:
        return time.time() + self.offset_s

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
