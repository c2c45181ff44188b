"""Containers that were restored before anybody asked for them: one for each of the functions that were started last.

To restore takes runsc 0.3 s and more, to tell what waits who it is a few milliseconds. Until SETUP it belongs to
nobody: of users' code nothing has run in it but what the template had run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from squall_gpu_agent.backends.gvisor.restoring import Restoring
from squall_gpu_agent.backends.process_template import ForkFailed
from squall_gpu_agent.backends.sandbox.slots import Slot
from squall_gpu_agent.backends.warden_link import SpawnFailed

AFTER_S = 0.2
"""After a container was started: when the next is restored. Until then the machine is busy with the one."""
KEPT_S = 600.0
"""How long one waits; its memory is then needed more by others."""
MOST = 4
"""Of all functions. Each takes 70 MiB and more, which placement does not count."""
MOST_BYTES = 128 << 20
"""Of a template's memory on the disk: copies of larger ones do not wait in memory."""


@dataclass(eq=False)
class Restored:
    """A copy of a template's memory in a slot, waiting to be told who it is. Whoever has it takes it or drops it."""

    slot: Slot
    restoring: Restoring
    pid: int
    """On the host."""

    @property
    def usable(self) -> bool:
        """Whether it still waits, as far as is known."""
        return not self.slot.ended.done()

    def drop(self) -> None:
        """Nobody will take it."""
        self.restoring.close()
        self.slot.launcher.kill(self.slot)
        self.slot.launcher.release(self.slot)


class RestoredAhead:
    """At most one for each key, and `MOST` in all; they are restored one after the other."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[Restored, asyncio.TimerHandle]] = {}
        """The one that was started last at the end; with the end of its time."""
        self._coming: dict[str, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()

    def take(self, key: str) -> Restored | None:
        """The one that waits for this key, if there is one: the caller's from now on."""
        found = self._waiting.pop(key, None)
        if found is None:
            return None
        restored, end = found
        end.cancel()
        if restored.usable:
            return restored
        restored.drop()
        return None

    def later(self, key: str, restore: Callable[[], Awaitable[Restored]]) -> None:
        """Have one made, in a while, if there is none. `restore` may raise `ForkFailed`, `SpawnFailed`, `OSError`: then
        there is none, and the next container that is asked for is restored itself and says what is wrong."""
        if key in self._waiting or key in self._coming:
            return
        task = asyncio.get_running_loop().create_task(self._make(key, restore))  # ended by `close`
        self._coming[key] = task
        task.add_done_callback(lambda _: self._coming.pop(key, None))

    def drop(self, key: str) -> None:
        """It must not be used any more."""
        if (task := self._coming.get(key)) is not None:
            task.cancel()
        if (found := self._waiting.pop(key, None)) is not None:
            restored, end = found
            end.cancel()
            restored.drop()

    async def close(self) -> None:
        """Nobody will ask."""
        coming = list(self._coming.values())
        for key in [*self._waiting, *self._coming]:
            self.drop(key)
        await asyncio.gather(*coming, return_exceptions=True)

    async def _make(self, key: str, restore: Callable[[], Awaitable[Restored]]) -> None:
        await asyncio.sleep(AFTER_S)
        async with self._one_at_a_time:
            try:
                restored = await restore()
            except (ForkFailed, SpawnFailed, OSError):
                return
        end = asyncio.get_running_loop().call_later(KEPT_S, self.drop, key)
        self._waiting[key] = restored, end
        for oldest in list(self._waiting)[: max(0, len(self._waiting) - MOST)]:
            self.drop(oldest)
