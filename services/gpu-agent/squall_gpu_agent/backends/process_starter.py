"""Starts processes: by the warden, or by a fork of a bare interpreter of the same environment.

Owns the warden and the bare interpreters. A bare interpreter has imported the runner and nothing else, so a fork of it
is a fresh process that saves the 40 ms in which Python and the runner start (measured on the CI machine); it holds no
code, no environment and no secret of anybody.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from squall_gpu_agent.backend import CommandFailed, NoTemplate
from squall_gpu_agent.backends import launch
from squall_gpu_agent.backends.control import ControlClosed
from squall_gpu_agent.backends.launch import Paths, ProcessWanted
from squall_gpu_agent.backends.process_template import ForkFailed, ProcessTemplate
from squall_gpu_agent.backends.sdk_files import SdkFiles
from squall_gpu_agent.backends.template_pool import TemplatePool
from squall_gpu_agent.backends.warden_link import Launch, OnExit, SpawnFailed, WardenLink
from squall_gpu_agent.pipes import Pipes
from squall_gpu_agent.runner_words import Ready
from squall_images.environments import Environment

BARE_INTERPRETERS = 8
BARE_START_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Started:
    """A process that waits for its SETUP."""

    pid: int
    whole_env: bool
    """SETUP must carry the whole environment: it was forked from a process that had another."""


class Starter:
    """One per backend."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._warden: WardenLink | None = None
        self._starting = asyncio.Lock()
        self._bare: TemplatePool[ProcessTemplate] = TemplatePool(BARE_INTERPRETERS)
        self._numbers = itertools.count(1)

    async def warden(self) -> WardenLink:
        """The warden, started if there is none."""
        async with self._starting:
            if self._warden is None or not self._warden.alive:
                self._warden = WardenLink()
            return self._warden

    async def start(
        self, wanted: ProcessWanted, env: Mapping[str, str], descriptors: Sequence[int], on_exit: OnExit
    ) -> Started:
        """A fresh process of the image's interpreter. `env` is its environment. Raises `SpawnFailed`."""
        if wanted.view_reason is None and not launch.needs_exec(wanted.declared):
            bare = await self.bare(wanted.environment, wanted.sdk)
            if isinstance(bare, ProcessTemplate):
                try:
                    pid = await bare.fork(descriptors, on_exit)
                except ForkFailed:
                    pass  # it has just ended: the plain way works without it
                else:
                    self.adopt(pid, on_exit)
                    return Started(pid, whole_env=True)
        spawning = Launch(
            argv=launch.command(wanted.environment.python, str(wanted.sdk.sdk)),
            env=env,
            cwd=wanted.home_folder if wanted.view_reason is None else "/",
            view=launch.view(wanted),
            on_exit=on_exit,
        )
        return Started(await (await self.warden()).spawn(spawning, descriptors), whole_env=False)

    async def start_beside(
        self, wanted: ProcessWanted, words: Sequence[str], descriptors: Sequence[int], on_exit: OnExit
    ) -> int:
        """A command with what the container's code sees; its pid. Raises `CommandFailed`."""
        argv, env = launch.command_beside(wanted, words)
        spawning = Launch(argv=argv, env=env, cwd=wanted.cwd, view=None, on_exit=on_exit)
        no_socket = os.open(os.devnull, os.O_RDONLY)
        try:
            return await (await self.warden()).spawn(spawning, [no_socket, *descriptors])
        except SpawnFailed as error:
            raise CommandFailed(f"{words[0]!r} cannot be started: {error}") from error
        finally:
            os.close(no_socket)

    async def bare(self, environment: Environment, sdk: SdkFiles) -> ProcessTemplate | NoTemplate:
        """The bare interpreter of an environment, started if there is none."""
        return await self._bare.get(str(environment.prefix), lambda: self._make_bare(environment, sdk))

    def adopt(self, pid: int, on_exit: OnExit) -> None:
        """Hear of its end also when the process it was forked from has ended first."""
        if self._warden is not None and self._warden.alive:
            self._warden.watch(pid, on_exit)

    def forget(self, pid: int) -> None:
        """Its end is known."""
        if self._warden is not None:
            self._warden.forget(pid)

    def ended(self, pid: int, container: str) -> None:
        """A container has ended: kill what it left behind."""
        if self._warden is not None and self._warden.alive and pid > 1:
            self._warden.forget(pid)
            self._warden.sweep(pid, container)

    async def close(self) -> None:
        """Kill everything that was started."""
        self._bare.kill_all()
        if self._warden is not None:
            await self._warden.close()
            self._warden = None

    async def _make_bare(self, environment: Environment, sdk: SdkFiles) -> ProcessTemplate | NoTemplate:
        folder = self._paths.containers / f"bare-{next(self._numbers)}"
        await asyncio.to_thread(folder.mkdir, parents=True)
        pipes = Pipes(lambda _stream, _text: None)
        ends = Ends(pipes)
        template = ProcessTemplate(str(environment.prefix), ends.ours, folder.name, lambda _log: None)
        spawning = Launch(
            argv=launch.command(environment.python, str(sdk.sdk)),
            env={**launch.TEMPLATE_VARIABLES, "LANG": launch.LANG},
            cwd=str(folder),
            view=None,
            on_exit=cleanup(pipes, folder),
        )
        usable = False
        try:
            template.pid = await (await self.warden()).spawn(spawning, ends.theirs)
            template.setup({"template": True})
            async with asyncio.timeout(BARE_START_TIMEOUT_S):
                usable = isinstance(await template.ready, Ready)
        except (SpawnFailed, ControlClosed, TimeoutError) as error:
            return NoTemplate(reason=f"no bare interpreter: {error}")
        finally:
            ends.close_theirs()
            if not usable:
                template.kill()
                template.close()
        return template if usable else NoTemplate(reason="no bare interpreter: it ended")


class Ends:
    """Both ends of what a new process is given: a socket, and the pipes for its descriptors 1 and 2."""

    def __init__(self, pipes: Pipes | None = None) -> None:
        """`pipes` reads what the process writes; None: see `attach`. Raises `OSError`."""
        self.ours, sock = socket.socketpair()
        self.theirs = [sock.detach()]
        self._unread: list[tuple[str, int]] = []
        try:
            for stream in ("stdout", "stderr"):
                read, write = os.pipe()
                self._unread.append((stream, read))
                self.theirs.append(write)
        except OSError:  # too many files are open: not these as well
            self.close()
            raise
        if pipes is not None:
            self.attach(pipes)

    def attach(self, pipes: Pipes) -> None:
        """What the process writes, and has written, is read from now on."""
        while self._unread:
            pipes.add(*self._unread.pop())

    def renew(self, pipes: Pipes) -> None:
        """New ones, read by `pipes`: who has those before is told nothing, and not heard any more. Raises `OSError`."""
        self.close()
        pipes.close()
        others = Ends(pipes)
        self.ours, self.theirs = others.ours, others.theirs

    def close_theirs(self) -> None:
        """After they were passed on."""
        while self.theirs:
            os.close(self.theirs.pop())

    def close(self) -> None:
        """Nobody needs them any more."""
        self.ours.close()
        self.close_theirs()
        while self._unread:
            os.close(self._unread.pop()[1])


def cleanup(pipes: Pipes, folder: Path) -> Callable[[int | None], None]:
    """What is to do when a process without a container of its own has ended."""

    def on_exit(_status: int | None) -> None:
        pipes.close()
        asyncio.get_running_loop().run_in_executor(None, shutil.rmtree, folder, True)

    return on_exit
