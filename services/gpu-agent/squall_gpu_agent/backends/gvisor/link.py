"""The agent's side of gVisor's launcher: slots whose program is started after they were made."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from squall_gpu_agent.backends.control import ControlClosed
from squall_gpu_agent.backends.sandbox.slots import LauncherLink, Slot, written
from squall_gpu_agent.backends.sandbox.words import FromLauncher, ToLauncher
from squall_gpu_agent.backends.warden_link import SpawnFailed
from squall_runner.frames import Frame


class GvisorLink(LauncherLink):
    """One launcher process."""

    module = "squall_gpu_agent.backends.gvisor.launcher"

    def __init__(self, stage: Path) -> None:
        super().__init__(stage)
        self._starting: dict[str, asyncio.Future[int]] = {}

    async def start(self, slot: Slot, words: Mapping[str, Any], ends: Sequence[int]) -> int:
        """Start the program of a slot that has its network; its host pid. Raises `SpawnFailed`."""
        started: asyncio.Future[int] = self._loop.create_future()
        self._starting[slot.name] = started
        slot.ended.add_done_callback(lambda _: self._on_started(slot.name, 0, _ENDED))
        try:
            with written(words) as file:
                self._control.send(ToLauncher.START, {"slot": slot.name}, [*ends, file])
            return await started
        except ControlClosed as error:
            raise SpawnFailed(_ENDED) from error
        finally:
            self._starting.pop(slot.name, None)

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind == FromLauncher.STARTED:
            self._on_started(str(frame.meta["slot"]), int(frame.meta["pid"]), str(frame.meta["message"]))
        else:
            super()._on_frame(frame)

    def _on_started(self, name: str, pid: int, message: str) -> None:
        started = self._starting.get(name)
        if started is None or started.done():
            return
        if pid:
            started.set_result(pid)
        else:
            started.set_exception(SpawnFailed(message))


_ENDED = "its slot ended while it started"
