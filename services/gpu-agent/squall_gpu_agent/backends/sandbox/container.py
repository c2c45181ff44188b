"""One running sandbox: what ends it, and what its end means."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from squall_gpu_agent.backend import CommandFailed, Exit, OnCommandEnd
from squall_gpu_agent.backends import launch
from squall_gpu_agent.backends.payload_container import PayloadContainer
from squall_gpu_agent.backends.runner_container import code_and_signal
from squall_gpu_agent.backends.sandbox.forks import Fork
from squall_gpu_agent.backends.sandbox.slots import Slot
from squall_gpu_agent.backends.sandbox.wanted import SCRATCH, SandboxWanted
from squall_gpu_agent.backends.sandbox.words import Overlay
from squall_gpu_agent.backends.warden_link import SpawnFailed
from squall_gpu_agent.pipes import Pipes
from squall_gpu_agent.runner_link import RunnerLink

REPORTED_S = 0.2
"""After its slot is gone: how long what it was forked from, which knows its status, may take to tell it."""


class SandboxContainer(PayloadContainer):
    """A slot with a runner in it."""

    def __init__(self, container_id: str, link: RunnerLink) -> None:
        super().__init__(container_id, Path("/nonexistent"), link)
        self.slot: Slot | None = None
        self.fork: Fork | None = None
        """Of its template, or of a bare interpreter; perhaps made ahead."""
        self.forked = False
        """It is a fork, so that what it was forked from tells how it ends."""
        self.not_forked = ""
        """Why it was not forked from a bare interpreter although that was tried."""

    @property
    def pipes(self) -> Pipes:
        """What it prints past its runner."""
        return self._link.pipes

    def move(self, slot: Slot) -> None:
        """Live in another slot, before anything runs; the one before is given up."""
        self.prepare(slot)
        self._hear(slot)

    def prepare(self, slot: Slot) -> None:
        """As `move`, into a slot whose end is not yet its own: see `become`."""
        before, self.slot = self.slot, slot
        if before is not None:
            before.launcher.kill(before)
            before.launcher.release(before)
        self.scratch, self.incoming = slot.scratch, slot.incoming
        self._link.settle(slot.scratch, slot.taken)

    async def become(self, fork: Fork) -> None:
        """Its process is that fork, in the slot that was prepared.

        Raises `ForkFailed`: it has no process then, and the end of that fork or of its slot is not its own.
        """
        self.pid = await fork.taken(self.exited)
        self.forked = True
        self._hear(fork.slot)

    def _hear(self, slot: Slot) -> None:
        slot.ended.add_done_callback(lambda ended: self._on_slot_ended(slot, ended.result()))

    @property
    def disk_limits(self) -> str:
        """See `PayloadContainer.disk_limits`."""
        if self.slot is None:
            return ""
        plan = self.slot.plan
        if plan.device:
            return f"files {plan.writable_mib} MiB, /dev/shm {plan.shared_memory_mib} MiB, which count as memory"
        return f"files {plan.writable_mib} MiB, /dev/shm {plan.shared_memory_mib} MiB; both count as memory"

    def disks(self) -> dict[str, int]:
        """See `PayloadContainer.disks`."""
        return dict.fromkeys(("/", SCRATCH), self.slot.plan.writable_mib) if self.slot is not None else {}

    async def enter(
        self, wanted: SandboxWanted, words: Sequence[str], outputs: Sequence[int], on_end: OnCommandEnd
    ) -> int:
        """See `Inside.start`."""
        if self.slot is None:
            raise CommandFailed("the container has not started yet")
        try:
            return await self.slot.launcher.enter(self.slot, self._command(wanted, words), outputs, on_end)
        except SpawnFailed as error:
            raise CommandFailed(str(error)) from error

    def _command(self, wanted: SandboxWanted, words: Sequence[str]) -> dict[str, Any]:
        """What the launcher, or the first process, is told about a command."""
        env = {**launch.shared_variables(wanted), **launch.own_variables(wanted)}
        return {"argv": list(words), "env": env, "cwd": wanted.place.cwd}

    def volume_folders(self) -> list[tuple[str, str]]:
        """See `PayloadContainer.volume_folders`."""
        slot = self.slot
        if slot is None:
            return []
        root = f"/proc/{slot.init}/root"
        return [(each.above, root + self._volume_seen(n, each)) for n, each in enumerate(slot.plan.overlays)]

    def _volume_seen(self, number: int, overlay: Overlay) -> str:
        """Where a volume is in the root of the slot's first process."""
        return overlay.inner

    def processes(self) -> Sequence[int]:
        """See `PayloadContainer.processes`."""
        return self.slot.group.processes() if self.slot is not None else ()

    def _on_slot_ended(self, slot: Slot, status: int | None) -> None:
        if slot is not self.slot:
            return
        if status is None and self.forked:
            self._loop.call_later(REPORTED_S, self.exited, None)
        else:
            self.exited(status)

    def _kill_all(self) -> None:
        if self.slot is not None:
            self.slot.launcher.kill(self.slot)

    def _exit_of(self, status: int | None) -> Exit:
        code, number = code_and_signal(status)
        if status is None:
            number = signal.SIGKILL  # nothing else ends a slot's first process before it has told
        if number == signal.SIGKILL and not self._kill_reason and self.slot and self.slot.group.oom_kills():
            return Exit(code=code, signal=number, oom=True, reason=self._out_of_memory())
        return Exit(code=code, signal=number, oom=False, reason=self._reason(code, number))

    def oom_kills(self) -> tuple[int, int | None]:
        """See `PayloadContainer.oom_kills`."""
        return (self.slot.group.oom_kills(), self.slot.memory_mib) if self.slot is not None else (0, None)

    def _out_of_memory(self) -> str:
        limit = self.slot.memory_mib if self.slot else None
        return f"killed: out of memory (limit {limit} MiB)" if limit else "killed: the machine ran out of memory"

    def _clean_up(self) -> None:
        if self.slot is not None:
            self.slot.launcher.release(self.slot)
