"""One running container of the gVisor backend: what runsc's exit status means."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

from squall_gpu_agent.backend import Exit
from squall_gpu_agent.backends import launch
from squall_gpu_agent.backends.gvisor import words
from squall_gpu_agent.backends.gvisor.template import GvisorTemplate
from squall_gpu_agent.backends.runner_container import code_and_signal
from squall_gpu_agent.backends.sandbox.container import SandboxContainer
from squall_gpu_agent.backends.sandbox.wanted import SandboxWanted
from squall_gpu_agent.backends.sandbox.words import Overlay

SIGNALLED = 128
"""runsc ends with this plus the number of the signal that ended the program."""
PANICKED = 2
"""How Go ends a program that cannot go on: gVisor's kernel does not survive it when the host refuses it a process."""


class GvisorContainer(SandboxContainer):
    """A slot with runsc in it."""

    template: GvisorTemplate | None = None
    """What it was restored from; None if it was not."""
    platform = ""
    most_processes = 0
    """Its limit, for words about it."""

    def _command(self, wanted: SandboxWanted, command: Sequence[str]) -> dict[str, Any]:
        assert self.slot is not None
        env = {**launch.shared_variables(wanted), **launch.own_variables(wanted)}
        about = words.process(command, env, wanted.place.cwd, self.slot.plan.open_files)
        return {"about": about, "runsc": words.runsc(self.platform, network=True)}

    def disks(self) -> dict[str, int]:
        """See `PayloadContainer.disks`. Its `/tmp` is in gVisor's own memory."""
        found = super().disks()
        return {**found, "/tmp": words.tmp_mib(self.slot.plan)} if self.slot is not None else found

    def _volume_seen(self, number: int, overlay: Overlay) -> str:
        """See `SandboxContainer._volume_seen`: runsc's root is not its container's."""
        return words.volume_places(number)[1]

    def _exit_of(self, status: int | None) -> Exit:
        code, number = code_and_signal(status)
        if code is not None and SIGNALLED < code <= SIGNALLED + signal.NSIG:
            number = code - SIGNALLED
            code = None
        if status is None:
            number = signal.SIGKILL
        # The kernel may have killed any part of runsc: what its client then says does not matter.
        if code != 0 and not self._kill_reason and self.slot and self.slot.group.oom_kills():
            return Exit(code=code, signal=signal.SIGKILL, oom=True, reason=self._out_of_memory())
        reason = self._reason(code, number)
        if code == PANICKED and not self._kill_reason and self.slot and self.slot.group.refused_processes():
            reason = f"ended: more processes than gVisor may have here (limit {self.most_processes})"
        return Exit(code=code, signal=number, oom=False, reason=reason)
