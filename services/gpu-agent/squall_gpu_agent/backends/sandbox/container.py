"""One running sandbox: what ends it, and what its end means."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

from squall_gpu_agent.backend import End, Exit, Failed, InputRequest, NotBegun, OnBegin, OnItem
from squall_gpu_agent.backends.runner_container import RunnerContainer, code_and_signal
from squall_gpu_agent.backends.sandbox.slots import LauncherLink, Slot
from squall_gpu_agent.backends.sandbox.wanted import SCRATCH
from squall_gpu_agent.runner_link import RunnerLink

REPORTED_S = 0.2
"""After its slot is gone: how long the template, which knows the status of a fork, may take to tell it."""
_DISK_FULL = "[Errno 28]"


class SandboxContainer(RunnerContainer):
    """A slot with a runner in it."""

    def __init__(self, container_id: str, link: RunnerLink, slot: Slot | None, launcher: LauncherLink) -> None:
        super().__init__(container_id, Path("/nonexistent"), link)
        self.slot: Slot | None = None
        self.not_inside = "commands in sandboxes are not built yet; have the function run it with `subprocess`"
        self._launcher = launcher
        if slot is not None:
            self.move(slot)

    def move(self, slot: Slot) -> None:
        """Live in another slot, before anything runs; the one before is given up."""
        before, self.slot = self.slot, slot
        if before is not None:
            self._launcher.kill(before)
            self._launcher.release(before)
        self.scratch, self.incoming = slot.scratch, slot.incoming
        self._link.settle(slot.scratch, slot.taken)
        slot.ended.add_done_callback(lambda ended: self._on_slot_ended(slot, ended.result()))

    async def run(
        self, request: InputRequest, on_item: OnItem | None = None, on_begin: OnBegin | None = None
    ) -> End | NotBegun:
        """See `Container.run`."""
        if request.path is not None and request.path.parent == self.scratch:
            request = replace(request, path=Path(SCRATCH, request.path.name))
        end = await super().run(request, on_item, on_begin)
        if isinstance(end, Failed) and _DISK_FULL in end.message and self.slot is not None:
            plan = self.slot.plan
            limits = f"files {plan.writable_mib} MiB, /dev/shm {plan.shared_memory_mib} MiB"
            end = replace(end, message=f"{end.message} (limits of this container: {limits}; both count as memory)")
        return end

    def _on_slot_ended(self, slot: Slot, status: int | None) -> None:
        if slot is not self.slot:
            return
        if status is None and self.how == "fork":
            self._loop.call_later(REPORTED_S, self.exited, None)
        else:
            self.exited(status)

    def _kill_all(self) -> None:
        if self.slot is not None:
            self._launcher.kill(self.slot)

    def _exit_of(self, status: int | None) -> Exit:
        code, number = code_and_signal(status)
        if status is None:
            number = signal.SIGKILL  # nothing else ends a slot's first process before it has told
        if number == signal.SIGKILL and not self._kill_reason and self.slot and self.slot.group.oom_kills():
            return Exit(code=code, signal=number, oom=True, reason=self._out_of_memory())
        return Exit(code=code, signal=number, oom=False, reason=self._reason(code, number))

    def _out_of_memory(self) -> str:
        limit = self.slot.memory_mib if self.slot else None
        return f"killed: out of memory (limit {limit} MiB)" if limit else "killed: the machine ran out of memory"

    def _clean_up(self) -> None:
        if self.slot is not None:
            self._launcher.release(self.slot)
