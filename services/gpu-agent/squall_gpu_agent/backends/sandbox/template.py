"""The agent's side of one template of sandboxes: a sandbox itself, with slots around it that its forks enter."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

from squall_gpu_agent.backend import OnLog
from squall_gpu_agent.backends.process_starter import Ends
from squall_gpu_agent.backends.process_template import ForkFailed, ProcessTemplate
from squall_gpu_agent.backends.sandbox.slots import LauncherLink, Slot
from squall_gpu_agent.backends.warden_link import OnExit, SpawnFailed

AHEAD_AFTER_S = 0.1
"""After a container was taken: when the next is forked ahead. Until then the machine is busy with starting the one."""


class Fork:
    """A slot for one container and, sooner or later, the fork in it. Until SETUP a fork only waits, and belongs to
    nobody: of users' code nothing has run in it but what `os.register_at_fork` was given."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.ends = Ends()
        self.pid: asyncio.Task[int] | None = None
        """Of the fork, on the host; None while nobody has asked for it. Raises `ForkFailed`."""
        self._on_exit: OnExit | None = None
        self._ended: list[int | None] = []

    @property
    def usable(self) -> bool:
        """Whether a container can still be made of it, as far as is known."""
        failed = self.pid is not None and self.pid.done() and self.pid.exception() is not None
        return not (failed or self._ended or self.slot.ended.done())

    def exited(self, status: int | None) -> None:
        """The template has seen its end."""
        self._ended.append(status)
        if self._on_exit is not None:
            self._on_exit(status)

    def taken(self, on_exit: OnExit) -> None:
        """It is somebody's, who hears of its end."""
        self._on_exit = on_exit
        for status in self._ended:
            on_exit(status)


class SandboxTemplate(ProcessTemplate):
    """One template; it keeps a fork ready."""

    def __init__(self, key: str, sock: socket.socket, name: str, on_log: OnLog) -> None:
        super().__init__(key, sock, name, on_log)
        self.slot: Slot
        self.launcher: LauncherLink
        self.make_slot: Callable[[], Slot]
        self.forks_ahead = True
        """Whether one is made ahead."""
        self._ahead: Fork | None = None
        self._later: asyncio.TimerHandle | None = None

    def initialised(self) -> None:
        """See `ProcessTemplate.initialised`."""
        super().initialised()
        self._fork_ahead()

    def take(self) -> Fork:
        """One for a container: made ahead, unless several are asked for at once. The next is made a little later."""
        fork, self._ahead = self._ahead, None
        if fork is not None and not fork.usable:
            self._drop(fork)
            fork = None
        if self.forks_ahead and self._later is None:
            self._later = asyncio.get_running_loop().call_later(AHEAD_AFTER_S, self._fork_ahead)
        return fork or Fork(self.make_slot())

    async def forked(self, fork: Fork, on_exit: OnExit) -> int:
        """The host pid of a container, which is the caller's from now on. Raises `ForkFailed`."""
        fork.taken(on_exit)
        return await asyncio.shield(self._begun(fork))

    def retire(self) -> None:
        """See `ProcessTemplate.retire`."""
        super().retire()
        self._drop_ahead()

    def kill(self) -> None:
        """See `ProcessTemplate.kill`."""
        self.launcher.kill(self.slot)

    def _fork_ahead(self) -> None:
        self._later = None
        if self.forks_ahead and not self._retired and self._ahead is None:
            self._ahead = Fork(self.make_slot())
            self._begun(self._ahead)

    def _begun(self, fork: Fork) -> asyncio.Task[int]:
        if fork.pid is None:
            fork.pid = asyncio.get_running_loop().create_task(self._fork_into(fork))
            fork.pid.add_done_callback(_seen)
        return fork.pid

    async def _fork_into(self, fork: Fork) -> int:
        try:
            await fork.slot.until_ready()
            namespaces = fork.slot.namespaces()
        except (SpawnFailed, OSError) as error:
            raise ForkFailed(f"no slot: {error}") from error
        try:
            if not fork.ends.theirs:
                raise ForkFailed("its container was given up meanwhile")
            await self.fork(fork.ends.theirs, fork.exited, namespaces)
        finally:
            for descriptor in namespaces:
                os.close(descriptor)
        try:
            pid = await self.launcher.place(fork.slot, self.slot)
        except SpawnFailed as error:
            raise ForkFailed(str(error)) from error
        fork.ends.close_theirs()  # or nobody would see the end of the socket
        return pid

    def _on_closed(self) -> None:
        super()._on_closed()
        self._drop_ahead()

    def _drop_ahead(self) -> None:
        fork, self._ahead = self._ahead, None
        if fork is not None:
            self._drop(fork)
        if self._later is not None:
            self._later.cancel()

    def _drop(self, fork: Fork) -> None:
        self.launcher.kill(fork.slot)
        self.launcher.release(fork.slot)
        fork.ends.ours.close()
        self._begun(fork).add_done_callback(lambda _: fork.ends.close())  # a fork on its way still passes theirs on

    def _kill_container(self, pid: int) -> None:
        """Its pid means nothing out here; its slot is killed by its container."""


def _seen(task: asyncio.Task[Any]) -> None:
    """A failure that nobody waits for is told when the fork is to be taken."""
    if not task.cancelled():
        task.exception()
