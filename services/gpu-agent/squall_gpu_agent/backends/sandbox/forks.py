"""Forks that enter slots: one for each container, made when it is asked for or ahead of that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from squall_gpu_agent.backends.process_starter import Ends
from squall_gpu_agent.backends.sandbox.slots import Slot
from squall_gpu_agent.backends.warden_link import OnExit, SpawnFailed

AHEAD_AFTER_S = 0.1
"""After a container was taken: when the next is forked ahead. Until then the machine is busy with starting the one."""


class Parent(Protocol):
    """What containers are forked from."""

    async def fork_into(self, fork: Fork) -> int:
        """The host pid of a new process in that fork's slot. Raises `ForkFailed`."""

    def discard(self, slot: Slot) -> None:
        """Kill what is in it, and let go of it."""


class Fork:
    """A slot for one container and, sooner or later, the fork in it. Until SETUP a fork only waits, and belongs to
    nobody: of users' code nothing has run in it but what `os.register_at_fork` was given."""

    def __init__(self, parent: Parent, slot: Slot, ends: Ends) -> None:
        self.parent = parent
        self.slot = slot
        self.ends = ends
        self.pid: asyncio.Task[int] | None = None
        """Of the fork, on the host; None while nobody has asked for it. Raises `ForkFailed`."""
        self._on_exit: OnExit | None = None
        self._ended: list[int | None] = []

    @classmethod
    def in_new_slot(cls, parent: Parent, make_slot: Callable[[], Slot]) -> Fork:
        """Its slot is begun, the process is not. Raises `OSError`, `SpawnFailed`; then nothing is left of it."""
        ends = Ends()
        try:
            return cls(parent, make_slot(), ends)
        except BaseException:
            ends.close()
            raise

    @property
    def usable(self) -> bool:
        """Whether a container can still be made of it, as far as is known."""
        failed = self.pid is not None and self.pid.done() and self.pid.exception() is not None
        return not (failed or self._ended or self.slot.ended.done())

    def exited(self, status: int | None) -> None:
        """Its parent has seen its end."""
        self._ended.append(status)
        if self._on_exit is not None:
            self._on_exit(status)

    def begin(self) -> asyncio.Task[int]:
        """Have the process made, if it is not asked for yet."""
        if self.pid is None:
            self.pid = asyncio.get_running_loop().create_task(self.parent.fork_into(self))
            self.pid.add_done_callback(_seen)
        return self.pid

    async def taken(self, on_exit: OnExit) -> int:
        """The host pid of the process, which is the caller's from now on, and so is its end.

        Raises `ForkFailed`; its end is nobody's then, whenever it comes."""
        pid = await asyncio.shield(self.begin())
        self._on_exit = on_exit
        for status in self._ended:
            on_exit(status)
        return pid

    def drop(self) -> None:
        """Nobody will take it."""
        self.parent.discard(self.slot)
        self.ends.ours.close()
        if self.pid is None:
            self.ends.close()
        else:
            self.pid.add_done_callback(lambda _: self.ends.close())  # one on its way still passes theirs on


class Ahead:
    """Keeps one fork ready for containers that are alike."""

    def __init__(self, parent: Parent, make_slot: Callable[[], Slot]) -> None:
        self._parent = parent
        self._make_slot = make_slot
        self.fork: Fork | None = None
        """The one that waits."""
        self._later: asyncio.TimerHandle | None = None
        self._closed = False

    def begin(self) -> None:
        """Make one now, if none waits."""
        self._later = None
        if self._closed or self.fork is not None:
            return
        try:
            fork = self.fork = Fork.in_new_slot(self._parent, self._make_slot)
        except (OSError, SpawnFailed):  # nobody waits for it: the next container makes its own, and says why not
            return
        fork.begin().add_done_callback(lambda _: self._drop_if_failed(fork))

    def take(self) -> Fork:
        """One for a container: made ahead, unless several are asked for at once. The next is made a little later.

        Raises `OSError`, `SpawnFailed`."""
        fork, self.fork = self.fork, None
        if fork is not None and not fork.usable:
            fork.drop()
            fork = None
        if self._later is None and not self._closed:
            self._later = asyncio.get_running_loop().call_later(AHEAD_AFTER_S, self.begin)
        return fork or Fork.in_new_slot(self._parent, self._make_slot)

    def _drop_if_failed(self, fork: Fork) -> None:
        """What the check has refused does not live on until somebody asks: see the next container."""
        if self.fork is fork and not fork.usable:
            self.fork = None
            fork.drop()

    def close(self) -> None:
        """Its parent forks no more, or nobody will ask."""
        self._closed = True
        fork, self.fork = self.fork, None
        if fork is not None:
            fork.drop()
        if self._later is not None:
            self._later.cancel()
            self._later = None


class KeptForks:
    """One fork ready for each of the functions that were started last, whatever they are forked from."""

    def __init__(self, most: int) -> None:
        """`most`: functions."""
        self._most = most
        self._functions: dict[tuple[Parent, str], Ahead] = {}
        """The one that was asked for last at the end."""

    def of(self, parent: Parent, function: str, make_slot: Callable[[], Slot]) -> Ahead:
        """Of one function. `make_slot` is used when it was not known before."""
        ahead = self._functions.pop((parent, function), None) or Ahead(parent, make_slot)
        self._functions[parent, function] = ahead
        for key in list(self._functions)[: max(0, len(self._functions) - self._most)]:
            self._functions.pop(key).close()
        return ahead

    def all(self) -> list[Ahead]:
        """The one that was asked for last at the end."""
        return list(self._functions.values())

    def drop(self, parent: Parent) -> None:
        """It forks no more."""
        for key in [key for key in self._functions if key[0] is parent]:
            self._functions.pop(key).close()


def _seen(task: asyncio.Task[Any]) -> None:
    """A failure that nobody waits for is told when the fork is to be taken."""
    if not task.cancelled():
        task.exception()
