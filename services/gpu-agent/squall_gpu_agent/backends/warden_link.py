"""The agent's side of the warden: ask it to start processes, hear how they end."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squall_gpu_agent.backends.bundle_view import View
from squall_gpu_agent.backends.control import Control, ControlClosed
from squall_gpu_agent.backends.warden import FromWarden, ToWarden
from squall_runner.frames import Frame

END_TIMEOUT_S = 10.0

OnExit = Callable[[int | None], None]
"""Gets the wait status; None when nobody saw it."""


class SpawnFailed(Exception):
    """The process could not be started; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What to start."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    view: View | None
    on_exit: OnExit


class WardenLink:
    """One warden process."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C at the agent's terminal is the agent's business
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin"},
                cwd="/",
            )
        self._tickets = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Frame]] = {}
        self._launches: dict[int, Launch] = {}
        self._watched: dict[int, OnExit] = {}
        self._control = Control(ours, self._on_frame, self._on_closed)
        self.alive = True

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    async def spawn(self, launch: Launch, descriptors: Sequence[int]) -> int:
        """The pid of the started process. `descriptors`: its socket, stdout, stderr. Raises `SpawnFailed`."""
        ticket = next(self._tickets)
        self._launches[ticket] = launch
        meta = {
            "argv": list(launch.argv),
            "env": dict(launch.env),
            "cwd": launch.cwd,
            "view": launch.view._asdict() if launch.view else None,
        }
        try:
            answer = await self._ask(ToWarden.SPAWN, ticket, meta, descriptors)
        finally:
            self._launches.pop(ticket, None)
        if answer.kind == FromWarden.SPAWN_FAILED:
            raise SpawnFailed(str(answer.meta["message"]))
        return int(answer.meta["pid"])

    async def probe_views(self, folder: Path) -> str:
        """Why bundle views do not work here; empty when they do."""
        answer = await self._ask(ToWarden.PROBE, next(self._tickets), {"folder": str(folder)}, ())
        return str(answer.meta["message"])

    def sweep(self, pid: int, container: str) -> None:
        """Kill what an ended container left behind."""
        try:
            self._control.send(ToWarden.SWEEP, {"pid": pid, "container": container})
        except ControlClosed:
            pass  # then everything is being killed anyway

    def watch(self, pid: int, on_exit: OnExit) -> None:
        """Hear of a process that is not the warden's child yet, but becomes it if its parent dies."""
        self._watched[pid] = on_exit

    def forget(self, pid: int) -> None:
        """The other side reported its end."""
        self._watched.pop(pid, None)

    async def close(self) -> None:
        """Kill everything that it started, and itself."""
        self._control.close()
        self._lose_all()
        try:
            await asyncio.to_thread(self._process.wait, END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    async def _ask(self, kind: int, ticket: int, meta: Mapping[str, Any], descriptors: Sequence[int]) -> Frame:
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._answers[ticket] = answer
        try:
            self._control.send(kind, {"ticket": ticket, **meta}, descriptors)
            return await answer
        except ControlClosed as error:
            raise SpawnFailed("the agent's warden process has ended; the next start makes a new one") from error
        finally:
            self._answers.pop(ticket, None)

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind == FromWarden.EXITED:
            on_exit = self._watched.pop(int(frame.meta["pid"]), None)
            if on_exit is not None:
                on_exit(int(frame.meta["status"]))
            return
        ticket = int(frame.meta["ticket"])
        if frame.kind == FromWarden.SPAWNED and ticket in self._launches:
            # Now, not when the waiting task runs: the next frame may already tell of its end.
            self._watched[int(frame.meta["pid"])] = self._launches[ticket].on_exit
        answer = self._answers.get(ticket)
        if answer is not None and not answer.done():
            answer.set_result(frame)

    def _on_closed(self) -> None:
        self._lose_all()
        reap(self._process)

    def _lose_all(self) -> None:
        self.alive = False
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ControlClosed())
        watched, self._watched = self._watched, {}
        for on_exit in watched.values():
            on_exit(None)


def reap(process: subprocess.Popen[bytes]) -> None:
    """It has closed its socket, so it ends just now; without waiting here."""
    if process.poll() is None:
        asyncio.get_running_loop().run_in_executor(None, process.wait)


_START = "from squall_gpu_agent.backends.warden import main; main()"
