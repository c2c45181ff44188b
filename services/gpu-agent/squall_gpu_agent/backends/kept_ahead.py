"""Containers that were begun before anybody asked for them: one for each of the functions that were started last."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from squall_gpu_agent.backends.process_template import ForkFailed
from squall_gpu_agent.backends.warden_link import SpawnFailed

AFTER_S = 0.2
"""After a container was started: when the next is made. Until then the machine is busy with the one."""
KEPT_S = 600.0
"""How long one waits; its memory is then needed more by others."""


class Waiting(Protocol):
    """What waits to be told who it is. Whoever has it takes it or drops it."""

    @property
    def usable(self) -> bool:
        """Whether it still waits, as far as is known."""

    def drop(self) -> None:
        """Nobody will take it."""


W = TypeVar("W", bound=Waiting)


class KeptAhead(Generic[W]):
    """At most one for each key; they are made one after the other."""

    def __init__(self, most: int) -> None:
        """`most`: of all keys; the one that was made first gives way."""
        self._most = most
        self._waiting: dict[str, tuple[W, asyncio.TimerHandle]] = {}
        """The one that was started last at the end; with the end of its time."""
        self._coming: dict[str, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._closed = False

    def take(self, key: str) -> W | None:
        """The one that waits for this key, if there is one: the caller's from now on."""
        found = self._waiting.pop(key, None)
        if found is None:
            return None
        waiting, end = found
        end.cancel()
        if waiting.usable:
            return waiting
        waiting.drop()
        return None

    def later(self, key: str, make: Callable[[], Awaitable[W]]) -> None:
        """Have one made, in a while, if there is none. `make` may raise `ForkFailed`, `SpawnFailed`, `OSError`: then
        there is none, and the next container that is asked for is made anew and says what is wrong."""
        if self._closed or key in self._waiting or key in self._coming:
            return
        task = asyncio.get_running_loop().create_task(self._make(key, make))  # ended by `close`
        self._coming[key] = task
        task.add_done_callback(lambda _: self._coming.pop(key, None))

    def drop(self, key: str) -> None:
        """It must not be used any more."""
        if (task := self._coming.get(key)) is not None:
            task.cancel()
        if (found := self._waiting.pop(key, None)) is not None:
            waiting, end = found
            end.cancel()
            waiting.drop()

    async def close(self) -> None:
        """Nobody will ask."""
        self._closed = True
        coming = list(self._coming.values())
        for key in [*self._waiting, *self._coming]:
            self.drop(key)
        await asyncio.gather(*coming, return_exceptions=True)

    async def _make(self, key: str, make: Callable[[], Awaitable[W]]) -> None:
        await asyncio.sleep(AFTER_S)
        async with self._one_at_a_time:
            try:
                waiting = await make()
            except (ForkFailed, SpawnFailed, OSError):
                return
        end = asyncio.get_running_loop().call_later(KEPT_S, self.drop, key)
        self._waiting[key] = waiting, end
        for oldest in list(self._waiting)[: max(0, len(self._waiting) - self._most)]:
            self.drop(oldest)
