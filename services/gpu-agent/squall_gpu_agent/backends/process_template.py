"""The agent's side of one template process: its report, its forks, how they end."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
from collections.abc import Callable, Sequence

from squall_gpu_agent.backend import Log, OnLog
from squall_gpu_agent.backends.control import Control, ControlClosed
from squall_gpu_agent.backends.warden_link import OnExit
from squall_gpu_agent.runner_words import Ready, StartError, parse_started
from squall_runner.frames import Frame, FromRunner, ToRunner

ORPHAN_GRACE_S = 2.0
"""After a template died: how long its containers' ends may take to be reported by the warden."""


class ForkFailed(Exception):
    """The template ended before it forked."""


class ProcessTemplate:
    """One template. `pid` is set by the backend once the process exists."""

    def __init__(self, key: str, sock: socket.socket, name: str, on_log: OnLog) -> None:
        self.key = key
        self.pid = 0
        self.ready: asyncio.Future[Ready | StartError | None] = asyncio.get_running_loop().create_future()
        """Its report; None when it ended without one."""
        self.on_gone: Callable[[], None] = _nothing
        """Set by the backend: called once when it can fork no more."""
        self._name = name
        self._on_log: OnLog | None = on_log
        self._tickets = itertools.count(1)
        self._forks: dict[str, tuple[asyncio.Future[int], OnExit]] = {}
        self._containers: dict[int, OnExit] = {}
        self._control = Control(sock, self._on_frame, self._on_closed)
        self._retired = False

    @property
    def gone(self) -> bool:
        """It can fork no more."""
        return self._retired

    @property
    def containers(self) -> int:
        """Containers forked from it that have not ended."""
        return len(self._containers)

    def setup(self, meta: dict[str, object]) -> None:
        """Tell it what to load."""
        self._control.send(ToRunner.SETUP, meta)

    def initialised(self) -> None:
        """Its start is over: what it printed until now was the starting container's."""
        self._on_log = None

    async def fork(self, descriptors: Sequence[int], on_exit: OnExit, namespaces: Sequence[int] = ()) -> int:
        """The pid of a new container, as the template sees it. Raises `ForkFailed`.

        `descriptors`: its socket, stdout, stderr; `namespaces`: those that it shall be in.
        """
        ticket = str(next(self._tickets))
        pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._forks[ticket] = (pid, on_exit)
        try:
            meta = {"ticket": ticket, "namespaces": len(namespaces)}
            self._control.send(ToRunner.FORK, meta, [*descriptors, *namespaces])
            return await pid
        except ControlClosed as error:
            raise ForkFailed("its template has just ended") from error
        finally:
            self._forks.pop(ticket, None)
            self._close_if_unused()

    def retire(self) -> None:
        """Fork no more; end when the last container forked from it has ended."""
        if not self._retired:
            self._retired = True
            self.on_gone()
        self._close_if_unused()

    def kill(self) -> None:
        """SIGKILL, containers included."""
        if self.pid:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass

    def close(self) -> None:
        """The agent is done with it: its process ends when it sees the socket close."""
        self._control.close()
        self._on_closed()

    def _close_if_unused(self) -> None:
        if self._retired and not self._containers and not self._forks:
            self._control.close()  # its process ends when it sees that

    def _on_frame(self, frame: Frame) -> None:
        match frame.kind:
            case FromRunner.READY | FromRunner.START_FAILED if not self.ready.done():
                self.ready.set_result(parse_started(frame))
            case FromRunner.LOG if self._on_log is not None:
                text = frame.payload.decode("utf-8", "replace")
                self._on_log(Log(container=self._name, stream=str(frame.meta["stream"]), text=text))
            case FromRunner.FORKED:
                self._on_forked(str(frame.meta["ticket"]), _pid(frame))
            case FromRunner.FORK_FAILED:
                self._on_fork_failed(str(frame.meta["ticket"]), str(frame.meta["message"])[:1000])
            case FromRunner.EXITED:
                on_exit = self._containers.pop(_pid(frame), None)
                if on_exit is not None:
                    on_exit(int(frame.meta["status"]))
                self._close_if_unused()
            case _:
                pass  # a newer runner's

    def _on_forked(self, ticket: str, pid: int) -> None:
        waiting = self._forks.get(ticket)
        if waiting is None or waiting[0].done():
            self._kill_container(pid)  # whoever asked for it has gone
            return
        answer, on_exit = waiting
        self._containers[pid] = on_exit
        answer.set_result(pid)

    def _on_fork_failed(self, ticket: str, message: str) -> None:
        waiting = self._forks.get(ticket)
        if waiting is not None and not waiting[0].done():
            waiting[0].set_exception(ForkFailed(message))

    def _kill_container(self, pid: int) -> None:
        """One that it forked. What it is called here, it is called by the template."""
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass

    def _on_closed(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)
        for answer, _ in self._forks.values():
            if not answer.done():
                answer.set_exception(ControlClosed())
        if not self._retired:
            self._retired = True
            self.on_gone()
        orphans, self._containers = self._containers, {}
        for pid, on_exit in orphans.items():
            self._kill_container(pid)
            # The warden has inherited it and normally tells its status first.
            asyncio.get_running_loop().call_later(ORPHAN_GRACE_S, on_exit, None)


def _pid(frame: Frame) -> int:
    """User code runs in the template, so what it says is checked: 0 and below mean groups to kill(2), not a process."""
    pid = frame.meta["pid"]
    if not isinstance(pid, int) or pid <= 1:
        raise ValueError(f"not a process id: {pid!r}")
    return pid


def _nothing() -> None:
    """No backend listens."""
