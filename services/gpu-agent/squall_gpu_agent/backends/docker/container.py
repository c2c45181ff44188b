"""One running container of an engine: its door, what ends it, and what its end means.

The door is a connection to its first process: descriptors go in by it, the runner's wait status comes out, and its end
is the container's. It needs no request to the engine that waits.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from squall_gpu_agent.backend import CommandFailed, Exit, OnCommandEnd
from squall_gpu_agent.backends import launch
from squall_gpu_agent.backends.docker import volumes
from squall_gpu_agent.backends.docker.engine import Engine, EngineError
from squall_gpu_agent.backends.docker.wanted import DockerWanted, Limits
from squall_gpu_agent.backends.payload_container import PayloadContainer
from squall_gpu_agent.backends.runner_container import code_and_signal
from squall_gpu_agent.backends.sandbox import kernel
from squall_gpu_agent.backends.sandbox.wanted import SCRATCH
from squall_gpu_agent.backends.sandbox.words import Overlay
from squall_gpu_agent.runner_link import RunnerLink

END_S, POLL_S = 10.0, 0.02
OOM_TOLD_S = 0.5
"""After the end: how long the engine may take to hear that the kernel killed something for want of memory."""
DOOR_S = 60.0
STATUS_BYTES = 4


@dataclass(slots=True)
class Placed:
    """What of a container is on this machine. Used by several threads, one at a time."""

    engine: Engine
    name: str
    folder: Path
    threads: Executor
    """For requests to the engine, which may take long."""
    commands: Executor
    """For commands, which may take hours."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    on_removed: list[Callable[[], None]] = field(default_factory=list)
    """What else is to be taken away when it is gone."""
    gone: bool = False

    def make(self, body: Mapping[str, Any], user: int, writable_mib: int, overlays: Sequence[Overlay]) -> int:
        """Create and start it; its pid. Raises `OSError`."""
        with self.lock:
            if self.gone:
                raise EngineError("its start was given up")
            self._make_folders(user, writable_mib)
            volumes.mount(overlays, user)
            self.engine.create(self.name, body)
            self.engine.start(self.name)
            return int(self.engine.state(self.name).get("Pid", 0))

    def remove(self) -> None:
        """Take away everything of it."""
        with self.lock:
            self.gone = True
            try:
                self.engine.remove(self.name)
            except EngineError:
                pass  # the engine is gone; the next start of the agent tries again
            for remove in self.on_removed:
                remove()
            clear(self.folder)

    def await_end(self) -> bool:
        """It has no process any more; whether the kernel killed something in it for want of memory."""
        until, told_until = time.monotonic() + END_S, 0.0
        while time.monotonic() < until:
            try:
                state = self.engine.state(self.name)
            except EngineError:
                return False
            if state.get("OOMKilled"):
                return True
            if not state.get("Running"):
                told_until = told_until or time.monotonic() + OOM_TOLD_S
                if time.monotonic() > told_until or state.get("ExitCode") == 0:
                    return False
            time.sleep(POLL_S)
        return False

    def _make_folders(self, user: int, writable_mib: int) -> None:
        """Payload files are in memory, of bounded size: what code writes there fills no disk of the host."""
        own = self.folder / "own"
        own.mkdir()
        kernel.mount("squall", str(own), "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, f"mode=755,size={writable_mib}m")
        for name, owner in (("scratch", user), ("taken", 0)):
            (own / name).mkdir(0o700)
            os.chown(own / name, owner, owner)


def clear(folder: Path) -> None:
    """A folder of one container, with what is mounted in it."""
    volumes.unmount(folder)
    try:
        kernel.unmount(str(folder / "own"))
    except OSError:
        pass  # it was never mounted
    shutil.rmtree(folder, ignore_errors=True)


class Door:
    """Where a container's first process asks for its descriptors; open for one."""

    def __init__(self, folder: Path) -> None:
        (folder / "door").mkdir()
        self._listener = socket.socket(socket.AF_UNIX)
        # By a descriptor of the folder: paths of sockets have to be short, data folders are not.
        descriptor = os.open(folder / "door", os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._listener.bind(f"/proc/self/fd/{descriptor}/door")
        finally:
            os.close(descriptor)
        (folder / "door" / "door").chmod(0o666)
        self._listener.listen(1)
        self._listener.settimeout(DOOR_S)

    def close(self) -> None:
        """Whoever waits for it gives up."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # nobody waited
        self._listener.close()

    def opened(self) -> socket.socket:
        """Wait for the first process, and close the door. Raises `OSError`."""
        try:
            connection, _ = self._listener.accept()
        finally:
            self._listener.close()
        connection.setblocking(False)
        return connection


@dataclass(eq=False, slots=True)
class Begun:
    """A container of an engine whose first process waits at the open door to be told who it is, and knows nothing of
    anybody's yet. Whoever has it uses or drops it."""

    placed: Placed
    pid: int
    door: socket.socket
    remove: Callable[[Placed], None]
    """Has everything of it taken away, in its own time."""

    @property
    def usable(self) -> bool:
        """Whether it still waits, as far as is known."""
        try:
            self.door.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def drop(self) -> None:
        """Nobody will use it."""
        self.door.close()
        self.remove(self.placed)

    def pass_on(self, environment: Mapping[str, str], descriptors: Sequence[int]) -> socket.socket:
        """Tell it who it is; what is left is its connection. Raises `OSError`."""
        words = json.dumps(dict(environment)).encode()
        self.door.settimeout(DOOR_S)
        socket.send_fds(self.door, [struct.pack("!I", len(words))], list(descriptors))
        self.door.sendall(words)
        self.door.setblocking(False)
        return self.door


class DockerContainer(PayloadContainer):
    """See `RunnerContainer`."""

    def __init__(self, container_id: str, link: RunnerLink, placed: Placed, limits: Limits) -> None:
        super().__init__(container_id, placed.folder / "own" / "scratch", link)
        self.incoming = placed.folder / "own" / "taken"
        self.placed = placed
        self.limits = limits
        self.overlays: Sequence[Overlay] = ()
        """Its volumes."""
        self.begun: Begun | None = None
        """What it was made of, if that was begun ahead."""
        self.door: socket.socket | None = None
        self.removed: asyncio.Future[None] | None = None
        """When nothing of it is left; None until it has ended."""
        self._oom = False
        self._end = b""
        link.settle(self.scratch, self.incoming)

    @property
    def disk_limits(self) -> str:
        """See `PayloadContainer.disk_limits`."""
        each = f"/root, /tmp and /var/tmp {self.limits.writable_mib} MiB each"
        return f"{each}, /dev/shm {self.limits.shared_memory_mib} MiB; all of them count as memory"

    def disks(self) -> dict[str, int]:
        """See `PayloadContainer.disks`."""
        return dict.fromkeys(("/root", "/tmp", "/var/tmp", SCRATCH), self.limits.writable_mib)

    def volume_folders(self) -> list[tuple[str, str]]:
        """See `PayloadContainer.volume_folders`."""
        return [(each.above, f"{each.above}/{volumes.ALL}") for each in self.overlays]

    def processes(self) -> list[int]:
        """See `PayloadContainer.processes`: those of its pid namespace, whatever groups the engine made."""
        own = _pid_namespace(self.pid)
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and own == _pid_namespace(int(name)) != ""]

    def watch(self, door: socket.socket) -> None:
        """From now on its end is noticed."""
        self.door = door
        self._loop.add_reader(door, self._on_door, door)

    def _on_door(self, door: socket.socket) -> None:
        try:
            data = door.recv(64)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._end += data
        if data and len(self._end) <= STATUS_BYTES:
            return
        # Or more than a status: the image's own program is at the other end, and `await_end` gives it END_S to stop.
        self._loop.remove_reader(door)
        door.close()
        status = struct.unpack("!i", self._end)[0] if len(self._end) == STATUS_BYTES else None

        def ended(oom: bool) -> None:
            self._oom = oom
            self.exited(status)

        waiting = self._loop.run_in_executor(self.placed.threads, self.placed.await_end)
        waiting.add_done_callback(lambda done: ended(done.result()))

    async def enter(
        self, wanted: DockerWanted, words: Sequence[str], outputs: Sequence[int], on_end: OnCommandEnd
    ) -> int:
        """See `Inside.start`."""
        env = {**launch.shared_variables(wanted), **launch.own_variables(wanted)}
        body = {
            "AttachStdout": True,
            "AttachStderr": True,
            "Cmd": list(words),
            "Env": [f"{name}={value}" for name, value in env.items()],
            "WorkingDir": wanted.place.cwd,
        }
        engine = self.placed.engine
        try:
            command = await asyncio.to_thread(engine.prepare_command, self.placed.name, body)
        except EngineError as error:
            raise CommandFailed(str(error)) from error
        copies = dict(enumerate(map(os.dup, outputs), 1))
        running = self._loop.run_in_executor(self.placed.commands, _run, engine, command, copies)
        running.add_done_callback(lambda done: on_end(done.result()))
        while not running.done():
            try:
                told = await asyncio.to_thread(engine.command, command)
            except EngineError as error:
                raise CommandFailed(str(error)) from error
            if pid := int(told.get("Pid") or 0):
                return pid
            await asyncio.sleep(POLL_S)
        return 0  # it has ended already, or could not be started, which it has printed

    def _kill_all(self) -> None:
        if not self.placed.gone:
            self._loop.run_in_executor(self.placed.threads, self._kill_quietly)

    def _kill_quietly(self) -> None:
        try:
            self.placed.engine.kill(self.placed.name)
        except EngineError:
            pass  # it is gone, or the engine is: then `await_end` says so

    def _exit_of(self, status: int | None) -> Exit:
        code, number = code_and_signal(status)
        if status is None:
            number = signal.SIGKILL
        if number == signal.SIGKILL and not self._kill_reason and self._oom:
            reason = f"killed: out of memory (limit {self.limits.memory_mib} MiB)"
            return Exit(code=code, signal=number, oom=True, reason=reason)
        return Exit(code=code, signal=number, oom=False, reason=self._reason(code, number))

    def _clean_up(self) -> None:
        self.removed = self._loop.run_in_executor(self.placed.threads, self.placed.remove)


def _pid_namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""  # it has ended


def _run(engine: Engine, command: str, outputs: Mapping[int, int]) -> int | None:
    """Its wait status, as far as an engine tells."""
    try:
        for stream, data in engine.run_command(command):
            rest = memoryview(data)
            while stream in outputs and rest:
                rest = rest[os.write(outputs[stream], rest) :]
        code = engine.command(command)["ExitCode"]
    except OSError:
        return None  # the engine is gone, or nobody reads any more
    finally:
        for descriptor in outputs.values():
            os.close(descriptor)
    return None if code is None else int(code) << 8
