"""The warden: one small process beside the agent, parent of every template and of every container started
plainly.

Owns what a parent owns: it starts them, learns how they end, and kills all of them, with everything that they
started, when the agent is gone, however it went. It is a child subreaper, so what user code daemonised stays
within its reach. Single-threaded: a parent-death signal follows the thread that forked. Knows nothing of functions,
images or inputs.

Runs as its own process: `python -I -c "from squall_gpu_agent.backends.warden import main; main()"
<descriptor>`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from typing import Any, NamedTuple, NoReturn

from squall_gpu_agent.backends.bundle_view import View, ViewError, enter
from squall_gpu_agent.backends.standing import StandingParent, arrange
from squall_runner.frames import Frame

PR_SET_PDEATHSIG = 1
MARKER = "SQUALL_CONTAINER_ID"


class ToWarden:
    """Kinds of frames from the agent."""

    SPAWN = 1
    """{ticket, argv, env, cwd, view?} and three descriptors: socket, stdout, stderr."""
    SWEEP = 2
    """{pid, container}: kill what is left of a container that has ended."""
    PROBE = 3
    """{ticket, folder}: try whether bundle views work."""


class FromWarden:
    """Kinds of frames to the agent."""

    SPAWNED = 16
    """{ticket, pid}"""
    SPAWN_FAILED = 17
    """{ticket, message}"""
    EXITED = 18
    """{pid, status}, for children and for orphans that came to it."""
    PROBED = 19
    """{ticket, message}: empty when views work."""


def main() -> NoReturn:
    """Entry of the process."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    Warden(sock).run()


class Warden(StandingParent):
    """Starts what it is told to, and sweeps up."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._sweeps: list[tuple[int, str]] = []

    def on_frame(self, frame: Frame) -> None:
        """See `StandingParent.on_frame`."""
        match frame.kind:
            case ToWarden.SPAWN:
                self._spawn(frame.meta)
            case ToWarden.SWEEP:
                self._sweeps.append((frame.meta["pid"], frame.meta["container"]))
            case ToWarden.PROBE:
                self._probe(frame.meta)
            case _:
                pass  # a newer agent's; it runs with this file, so there is none

    def on_exit(self, pid: int, status: int) -> None:
        """See `StandingParent.on_exit`."""
        self.send(FromWarden.EXITED, {"pid": pid, "status": status})

    def after_round(self) -> None:
        """See `StandingParent.after_round`."""
        self._sweep()

    # --- starting ---

    def _spawn(self, request: dict[str, Any]) -> None:
        descriptors = self.take_descriptors(3)
        try:
            pid, message = self._fork_exec(request, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if message:
            self.send(FromWarden.SPAWN_FAILED, {"ticket": request["ticket"], "message": message})
        else:
            self.send(FromWarden.SPAWNED, {"ticket": request["ticket"], "pid": pid})

    def _fork_exec(self, request: dict[str, Any], descriptors: list[int]) -> tuple[int, str]:
        read, write = os.pipe()  # closed by a successful exec
        warden = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                self._become(request, descriptors, warden)
            except (OSError, ViewError, ValueError, KeyError, TypeError) as error:
                os.write(write, str(error).encode()[:4000])
            finally:
                os._exit(127)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            message = pipe.read().decode("utf-8", "replace")
        return pid, message

    def _become(self, request: dict[str, Any], descriptors: list[int], warden: int) -> None:
        os.setsid()
        self._die_with(warden)
        self.forget_signals()
        arrange(descriptors)
        if request.get("view"):
            enter(View(**request["view"]))
        os.chdir(request["cwd"])
        os.execve(request["argv"][0], request["argv"], request["env"])

    def _die_with(self, parent: int) -> None:
        if hasattr(self._libc, "prctl"):
            self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(137)

    def _probe(self, request: dict[str, Any]) -> None:
        read, write = os.pipe()
        base = tempfile.mkdtemp(dir=request["folder"])
        pid = os.fork()
        if pid == 0:
            try:
                _try_view(base)
            except (OSError, ViewError) as error:
                os.write(write, str(error).encode()[:4000])
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            message = pipe.read().decode("utf-8", "replace")
        shutil.rmtree(base, ignore_errors=True)
        self.send(FromWarden.PROBED, {"ticket": request["ticket"], "message": message})

    # --- ending ---

    def _sweep(self) -> None:
        """Kill what ended containers left: their sessions, and daemons that carry their id. One scan for all."""
        if not self._sweeps:
            return
        sweeps, self._sweeps = self._sweeps, []
        # The machine itself runs in session 0: a container has a pid of its own, and so has its session.
        sessions = {pid for pid, _ in sweeps if pid > 1}
        marks = {f"{MARKER}={container}".encode() for _, container in sweeps if container}
        for process in _descendants(os.getpid()):
            orphan = process.parent == os.getpid()
            if process.session in sessions or (orphan and not marks.isdisjoint(_environment(process.pid))):
                _kill(process.pid)

    def end(self) -> NoReturn:
        """Kill all, until no descendant is left: killing one may hand its children to us."""
        while pending := _descendants(os.getpid()):
            for process in pending:
                _kill(process.pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, 0)
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        os._exit(0)


def _try_view(base: str) -> None:
    code, work = os.path.join(base, "code"), os.path.join(base, "work")
    os.makedirs(os.path.join(code, "squall-view-probe"))
    os.mkdir(work)
    with open(os.path.join(code, "squall-view-probe", "file"), "w"):
        pass
    enter(View(code, work, []))
    os.stat("/squall-view-probe/file")


class Process(NamedTuple):
    """One line of /proc."""

    pid: int
    parent: int
    session: int


def _descendants(ancestor: int) -> list[Process]:
    """Children of that process, their children, and so on. Nothing else is ever killed here."""
    children: dict[int, list[Process]] = {}
    for process in _processes():
        children.setdefault(process.parent, []).append(process)
    found = list(children.get(ancestor, []))
    for process in found:
        found.extend(children.get(process.pid, []))
    return found


def _processes() -> list[Process]:
    """Every process that can be seen."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
            found.append(Process(int(name), int(fields[1]), int(fields[3])))
    return found


def _environment(pid: int) -> set[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return set(file.read().split(b"\0"))
    except OSError:
        return set()


def _kill(pid: int) -> None:
    if pid <= 1:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
