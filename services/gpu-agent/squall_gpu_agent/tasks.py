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

    def start(self, work: Coroutine[Any, Any, object], name: str) -> asyncio.Task[None]:
        """Run `work` beside everything else."""
        return self._group.create_task(_guarded(work, name))


async def _guarded(work: Coroutine[Any, Any, object], name: str) -> None:
    try:
        await work
    except Exception as error:  # noqa: BLE001  # the agent's consume loop, see above
        log.error("task_failed", task=name, error=error)
