"""One running container of the process backend: what ends it, and what is left of it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from squall_gpu_agent.backend import Exit
from squall_gpu_agent.backends import memory
from squall_gpu_agent.backends.runner_container import RunnerContainer, code_and_signal
from squall_gpu_agent.runner_link import RunnerLink
from squall_gpu_agent.volumes.trees import remove

MEMORY_POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What ends a container from outside."""

    memory_mib: int | None


class ProcessContainer(RunnerContainer):
    """A process group and what it holds."""

    def __init__(self, container_id: str, scratch: Path, link: RunnerLink, limits: Limits) -> None:
        super().__init__(container_id, scratch, link)
        self.not_inside = "it has files at absolute paths, which only its own processes see"
        self._limits = limits
        self._oom = False
        self._machine_kills = memory.machine_oom_kills()

    def watch_memory(self) -> None:
        """Kill it above its memory limit. Polled: without cgroups nobody else counts."""
        limit = self._limits.memory_mib
        if limit is None or self._status_known:
            return
        if memory.over_limit(self.pid, limit):
            self._oom = True
            self.kill(f"killed: out of memory (limit {limit} MiB)")
        else:
            self._loop.call_later(MEMORY_POLL_S, self.watch_memory)

    def _kill_all(self) -> None:
        if self.pid <= 1:
            return  # it ended before its pid was known here; 0 would be the agent's own group
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # it ends just now

    def _exit_of(self, status: int | None) -> Exit:
        code, number = code_and_signal(status)
        # The machine's own out-of-memory killer counts as ours: nobody else sends SIGKILL without a reason.
        by_machine = (
            number == signal.SIGKILL and not self._kill_reason and memory.machine_oom_kills() > self._machine_kills
        )
        reason = "killed: the machine ran out of memory" if by_machine else self._reason(code, number)
        return Exit(code=code, signal=number, oom=self._oom or by_machine, reason=reason)

    def _clean_up(self) -> None:
        self._loop.run_in_executor(None, remove, self.scratch)
