"""The agent's side of processes in sandboxes that fork containers into slots around their own: templates of functions,
and bare interpreters."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from squall_gpu_agent.backend import OnLog
from squall_gpu_agent.backends.process_template import ForkFailed, ProcessTemplate
from squall_gpu_agent.backends.sandbox.forks import Ahead, Fork, KeptForks
from squall_gpu_agent.backends.sandbox.slots import Slot
from squall_gpu_agent.backends.warden_link import SpawnFailed


class SandboxParent(ProcessTemplate):
    """A sandbox whose forks enter other slots."""

    def __init__(self, key: str, sock: socket.socket, name: str, on_log: OnLog) -> None:
        super().__init__(key, sock, name, on_log)
        self.slot: Slot

    def kill(self) -> None:
        """See `ProcessTemplate.kill`."""
        self.slot.launcher.kill(self.slot)

    def discard(self, slot: Slot) -> None:
        """See `Parent.discard`."""
        slot.launcher.kill(slot)
        slot.launcher.release(slot)

    async def fork_into(self, fork: Fork) -> int:
        """See `Parent.fork_into`."""
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
            pid = await self.slot.launcher.place(fork.slot, self.slot)
        except SpawnFailed as error:
            raise ForkFailed(str(error)) from error
        fork.ends.close_theirs()  # or nobody would see the end of the socket
        return pid

    def retire(self) -> None:
        """See `ProcessTemplate.retire`."""
        super().retire()
        self._drop_ahead()

    def _on_closed(self) -> None:
        super()._on_closed()
        self._drop_ahead()

    def _drop_ahead(self) -> None:
        """What was made ahead is not needed any more."""

    def _kill_container(self, pid: int) -> None:
        """Its pid means nothing out here; its slot is killed by its container."""


class SandboxTemplate(SandboxParent):
    """The template of one function: has imported its code. It keeps a fork ready."""

    ahead: Ahead | None = None
    """Of containers that are alike; None where each needs a slot of its own kind."""

    def initialised(self) -> None:
        """See `ProcessTemplate.initialised`."""
        super().initialised()
        if self.ahead is not None:
            self.ahead.begin()

    def _drop_ahead(self) -> None:
        if self.ahead is not None:
            self.ahead.close()


class BareInterpreter(SandboxParent):
    """The interpreter of an image, with the platform's files imported and nothing of anybody's code, for containers of
    one app that import for themselves."""

    def __init__(self, key: str, sock: socket.socket, name: str, kept: KeptForks) -> None:
        super().__init__(key, sock, name, lambda _: None)
        self._kept = kept

    def ahead_of(self, function: str, make_slot: Callable[[], Slot]) -> Ahead:
        """Forks for the containers of one function. `make_slot` is used when it was not known before."""
        ahead = self._kept.of(self, function, make_slot)
        if self._retired:
            self._drop_ahead()
        return ahead

    def _drop_ahead(self) -> None:
        self._kept.drop(self)
