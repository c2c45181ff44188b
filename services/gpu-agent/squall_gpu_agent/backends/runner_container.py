"""One running container, whatever the isolation: its link and its end.

Owns what happens from the started process to the last word about it. How it is killed, and what its end means, is the
backend's (`process_container.py`, `sandbox/container.py`). Does not start anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

from squall_gpu_agent.backend import (
    COMMIT_S,
    EXIT_GRACE_S,
    End,
    Exit,
    InputRequest,
    Inside,
    NotBegun,
    OnBegin,
    OnItem,
    Phase,
)
from squall_gpu_agent.runner_link import RunnerLink

LAST_WORDS_S = 0.5
"""After the process ended: how long bytes that it sent before may take to be read."""
SILENT_S = 2.0
"""After the socket closed: how long the process may go on living."""


class RunnerContainer:
    """See `squall_gpu_agent.backend.Container`."""

    def __init__(self, container_id: str, scratch: Path, link: RunnerLink) -> None:
        self.id = container_id
        self.pid = 0
        self.how = ""
        self.why = ""
        self.phases: tuple[Phase, ...] = ()
        self.scratch = self.incoming = scratch
        self.inside: Inside | None = None
        self.not_inside = ""
        self.on_ended: Callable[[RunnerContainer], None] = _nothing
        """Set by the backend: called once, when nothing of its runner is left."""
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[Exit] = self._loop.create_future()
        self._kill_reason = ""
        self._stopping = False
        self._status_known = False
        link.on_broken = self.kill
        link.closed.add_done_callback(lambda _: self._loop.call_later(SILENT_S, self._kill_silent))

    @property
    def running(self) -> frozenset[tuple[str, int]]:
        """See `Container.running`."""
        return self._link.running

    @property
    def killed_here(self) -> bool:
        """Its agent killed it."""
        return bool(self._kill_reason)

    @property
    def disk_mib(self) -> int:
        """See `Container.disk_mib`."""
        return 0

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

    def when_enough(self, tell: Callable[[], None]) -> None:
        """See `Container.when_enough`."""
        self._link.when_enough(tell)

    async def drain(self) -> None:
        """See `Container.drain`."""
        await self._link.drain()

    async def stop(self, grace_s: float = EXIT_GRACE_S, commit_s: float = COMMIT_S) -> Exit:
        """See `Container.stop`."""
        self._stopping = True
        self._link.request_stop()
        try:
            async with asyncio.timeout(grace_s):
                return await self.wait()
        except TimeoutError:
            pass
        if self._link.committing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(commit_s):
                    return await self.wait()
        self.kill(f"killed: it did not stop within {grace_s:g} s")
        return await self.wait()

    def kill(self, reason: str = "killed") -> None:
        """See `Container.kill`."""
        if self._status_known or not self.pid:
            return
        self._kill_reason = self._kill_reason or reason
        self._kill_all()

    async def wait(self) -> Exit:
        """See `Container.wait`."""
        return await asyncio.shield(self._exit)

    # --- what differs ---

    def _kill_all(self) -> None:
        """SIGKILL to everything in it that can be reached."""
        raise NotImplementedError

    def _exit_of(self, status: int | None) -> Exit:
        """What this end means."""
        raise NotImplementedError

    def _clean_up(self) -> None:
        """Nothing of it runs any more: take away what it leaves on this machine."""
        raise NotImplementedError

    # --- for the backend ---

    def exited(self, status: int | None) -> None:
        """Its process has ended with this wait status; None when nobody saw it."""
        if self._status_known:
            return
        self._status_known = True
        self._kill_all()  # what it started and left
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
        self._clean_up()
        self.on_ended(self)

    def _reason(self, code: int | None, number: int | None) -> str:
        """In words, from what is known to all backends."""
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


def code_and_signal(status: int | None) -> tuple[int | None, int | None]:
    """Of a wait status: one of them, or none where nobody saw it."""
    code = os.waitstatus_to_exitcode(status) if status is not None else None
    if code is not None and code < 0:
        return None, -code
    return code, None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _nothing(_: RunnerContainer) -> None:
    """No backend listens."""
