"""One running container of the process backend: its link, its limits, its end.

Owns what happens from the started process to the last word about it. Does not start anything.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from squall_gpu_agent.backend import EXIT_GRACE_S, End, Exit, InputRequest, Inside, NotBegun, OnBegin, OnItem, Phase
from squall_gpu_agent.backends import memory
from squall_gpu_agent.runner_link import RunnerLink

MEMORY_POLL_S = 0.2
LAST_WORDS_S = 0.5
"""After the process ended: how long bytes that it sent before may take to be read."""
SILENT_S = 2.0
"""After the socket closed: how long the process may go on living."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What ends a container from outside."""

    memory_mib: int | None


class ProcessContainer:
    """See `squall_gpu_agent.backend.Container`."""

    def __init__(self, container_id: str, scratch: Path, link: RunnerLink, limits: Limits) -> None:
        self.id = container_id
        self.pid = 0
        self.how = ""
        self.why = ""
        self.phases: tuple[Phase, ...] = ()
        self.scratch = scratch
        self.inside: Inside | None = None
        self.not_inside = "it has files at absolute paths, which only its own processes see"
        self.on_ended: Callable[[ProcessContainer], None] = _nothing
        """Set by the backend: called once, when nothing of its runner is left."""
        self._link = link
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[Exit] = self._loop.create_future()
        self._kill_reason = ""
        self._oom = False
        self._stopping = False
        self._status_known = False
        self._machine_kills = memory.machine_oom_kills()
        link.on_broken = self.kill
        link.closed.add_done_callback(lambda _: self._loop.call_later(SILENT_S, self._kill_silent))

    @property
    def running(self) -> frozenset[tuple[str, int]]:
        """See `Container.running`."""
        return self._link.running

    @property
    def lines_up(self) -> bool:
        """See `Container.lines_up`."""
        return self._link.lines_up

    async def run(
        self, request: InputRequest, on_item: OnItem | None = None, on_begin: OnBegin | None = None
    ) -> End | NotBegun:
        """See `Container.run`."""
        return await self._link.run(request, on_item, on_begin)

    def recall(self) -> None:
        """See `Container.recall`."""
        self._link.recall()

    def credit(self, call: str, index: int, n: int) -> None:
        """See `Container.credit`."""
        self._link.credit(call, index, n)

    def cancel(self, call: str, index: int) -> None:
        """See `Container.cancel`."""
        self._link.cancel(call, index)

    async def drain(self) -> None:
        """See `Container.drain`."""
        await self._link.drain()

    async def stop(self, grace_s: float = EXIT_GRACE_S) -> Exit:
        """See `Container.stop`."""
        self._stopping = True
        self._link.request_stop()
        try:
            async with asyncio.timeout(grace_s):
                return await self.wait()
        except TimeoutError:
            self.kill(f"killed: it did not stop within {grace_s:g} s")
            return await self.wait()

    def kill(self, reason: str = "killed") -> None:
        """See `Container.kill`."""
        if self._status_known or not self.pid:
            return
        self._kill_reason = self._kill_reason or reason
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # it ends just now

    async def wait(self) -> Exit:
        """See `Container.wait`."""
        return await asyncio.shield(self._exit)

    # --- for the backend ---

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

    def exited(self, status: int | None) -> None:
        """Its process has ended with this wait status; None when nobody saw it."""
        if self._status_known:
            return
        self._status_known = True
        _kill_group(self.pid)  # what it started and left in its process group
        end = self._exit_of(status)
        if self._link.closed.done():
            self._finish(end)
            return
        # What it sent before it ended may lie unread in the socket: a result must not be lost.
        late = self._loop.call_later(LAST_WORDS_S, self._finish, end)

        def heard_all(_: object) -> None:
            late.cancel()
            self._finish(end)

        self._link.closed.add_done_callback(heard_all)

    # --- small print ---

    def _finish(self, end: Exit) -> None:
        if self._exit.done():
            return
        self._link.ended(end)
        self._exit.set_result(end)
        self._loop.run_in_executor(None, shutil.rmtree, self.scratch, True)
        self.on_ended(self)

    def _exit_of(self, status: int | None) -> Exit:
        code = os.waitstatus_to_exitcode(status) if status is not None else None
        number = -code if code is not None and code < 0 else None
        if code is not None and code < 0:
            code = None
        # The machine's own out-of-memory killer counts as ours: nobody else sends SIGKILL without a reason.
        by_machine = (
            number == signal.SIGKILL and not self._kill_reason and memory.machine_oom_kills() > self._machine_kills
        )
        reason = "killed: the machine ran out of memory" if by_machine else self._reason(code, number)
        return Exit(code=code, signal=number, oom=self._oom or by_machine, reason=reason)

    def _reason(self, code: int | None, number: int | None) -> str:
        if self._kill_reason:
            return self._kill_reason
        if self._link.ending:
            return self._link.ending
        if number is not None:
            return f"killed by {_signal_name(number)}"
        if code is None:
            return "ended: the process that started it has died"
        if code == 0 and self._stopping:
            return "stopped"
        return f"exited with code {code}"

    def _kill_silent(self) -> None:
        self.kill("killed: it closed the socket to the agent")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _kill_group(pid: int) -> None:
    if pid <= 1:
        return  # it ended before its pid was known here; 0 would be the agent's own group
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _nothing(_: ProcessContainer) -> None:
    """No backend listens."""
