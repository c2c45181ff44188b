"""Supervised tasks: everything the agent runs beside its loops. One that fails is reported and ends alone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from squall_service.telemetry import log


class Tasks:
    """Starts tasks in one group. A bug in the handling of one call must not take down the containers of all others,
    hence the agent's second consume loop with a catch-all besides the bus's own."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, object], name: str) -> None:
        """Run `work` beside everything else."""
        task = self._group.create_task(_guarded(work, name), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def finish(self, within_s: float) -> None:
        """Wait for what runs; what takes longer is cancelled (the queue gives its call to somebody else)."""
        if not self._running:
            return
        _, late = await asyncio.wait(self._running, timeout=within_s)
        for task in late:
            log.warning("task_cancelled", task=task.get_name())
            task.cancel()


async def _guarded(work: Coroutine[Any, Any, object], name: str) -> None:
    try:
        await work
    except Exception as error:  # noqa: BLE001  # the agent's consume loop, see above
        log.error("task_failed", task=name, error=error)
