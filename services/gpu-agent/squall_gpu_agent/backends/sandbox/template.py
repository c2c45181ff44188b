"""The agent's side of one template of sandboxes: a sandbox itself, with slots around it that its forks enter."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence

from squall_gpu_agent.backend import OnLog
from squall_gpu_agent.backends.process_template import ForkFailed, ProcessTemplate
from squall_gpu_agent.backends.sandbox.slots import LauncherLink, Slot
from squall_gpu_agent.backends.warden_link import OnExit, SpawnFailed


class SandboxTemplate(ProcessTemplate):
    """One template; it keeps a slot ready."""

    def __init__(self, key: str, sock: socket.socket, name: str, on_log: OnLog) -> None:
        super().__init__(key, sock, name, on_log)
        self.slot: Slot
        self.launcher: LauncherLink
        self.make_slot: Callable[[], Slot]
        self.keeps_slots = True
        """Whether one is made ahead."""
        self._spare: Slot | None = None

    def initialised(self) -> None:
        """See `ProcessTemplate.initialised`."""
        super().initialised()
        if self.keeps_slots:
            self._spare = self.make_slot()

    def take_slot(self) -> Slot:
        """One for a fork: made ahead, unless several are asked for at once. The next is begun."""
        slot, self._spare = self._spare, None
        return slot if slot is not None and not slot.ended.done() else self.make_slot()

    async def fork_into(self, slot: Slot, descriptors: Sequence[int], on_exit: OnExit) -> int:
        """The host pid of a new container in a slot. Raises `ForkFailed`."""
        try:
            await slot.until_ready()
            namespaces = slot.namespaces()
        except (SpawnFailed, OSError) as error:
            raise ForkFailed(f"no slot: {error}") from error
        try:
            await self.fork(descriptors, on_exit, namespaces)
        finally:
            for descriptor in namespaces:
                os.close(descriptor)
        try:
            return await self.launcher.place(slot, self.slot)
        except SpawnFailed as error:
            raise ForkFailed(str(error)) from error
        finally:
            if self._spare is None and self.keeps_slots and not self._retired:
                self._spare = self.make_slot()

    def retire(self) -> None:
        """See `ProcessTemplate.retire`."""
        super().retire()
        self._drop_spare()

    def _on_closed(self) -> None:
        super()._on_closed()
        self._drop_spare()

    def _drop_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            self.launcher.kill(spare)
            self.launcher.release(spare)

    def kill(self) -> None:
        """See `ProcessTemplate.kill`."""
        self.launcher.kill(self.slot)

    def _kill_container(self, pid: int) -> None:
        """Its pid means nothing out here; its slot is killed by its container."""
