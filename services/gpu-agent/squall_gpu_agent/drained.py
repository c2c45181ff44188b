"""Whether an operator has taken this machine out of service: a file in the agent's folder, which outlives the agent.

Not on the bus: the node's entry there goes ten seconds after its agent, and a machine that restarts must not take work
because nobody was there to remember.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from squall_gpu_agent.capacity import Capacity
from squall_service.telemetry import log

TEXT = "This machine was taken out of service with `squall node drain`; `squall node resume` takes it back.\n"


class Drained:
    """The file, and what follows from it for the machine's capacity."""

    def __init__(self, data: Path, capacity: Capacity) -> None:
        self._file = data / "drained"
        self._capacity = capacity

    async def recall(self) -> None:
        """As it was left."""
        self._capacity.draining = await asyncio.to_thread(self._file.exists)
        if self._capacity.draining:
            log.warning("node_still_drained", file=str(self._file), fix="squall node resume")

    async def record(self, drained: bool) -> None:
        """On disk when this returns."""
        await asyncio.to_thread(self._write if drained else self._remove)
        self._capacity.draining = drained

    def _write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(TEXT)

    def _remove(self) -> None:
        self._file.unlink(missing_ok=True)
