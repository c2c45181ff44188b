"""A template: imports the user's code once, says what it is left with, then forks containers on request.

Owns the forks and reports how each of them ended. Decides nothing: the agent judges from the report whether
this process may be forked. Has exactly one thread, and never runs an input.
"""

from __future__ import annotations

import array
import gc
import importlib
import os
import select
import signal
import socket
import threading
from typing import Any, Callable, NamedTuple, NoReturn, Optional

from squall_runner import frames
from squall_runner.channel import Channel, end_now
from squall_runner.frames import Frame, FromRunner, ToRunner
from squall_runner.settings import Settings

Boot = Callable[[socket.socket], NoReturn]
"""Continues in a forked container, with its own socket."""

_PR_SET_PDEATHSIG = 1


class Fork(NamedTuple):
    """One container to make."""

    ticket: str
    descriptors: list[int]
    """Socket, stdout, stderr, and those of namespaces."""
    entrance: Optional[Any]
    """Of the slot that it enters, a `squall_runner.slot.Entrance`; None for a plain fork."""


def report(control: socket.socket) -> dict[str, Any]:
    """What would be shared with, or missing in, every fork: threads, open descriptors, child processes, memory."""
    return {
        "threads": _threads(),
        "descriptors": _descriptors(control),
        "children": _children(),
        "shared_memory": _shared_memory(),
    }


def serve_template(sock: socket.socket, channel: Channel, boot: Boot, settings: Settings) -> NoReturn:
    """Fork containers until the agent closes the socket. Never returns."""
    gc.collect()
    gc.freeze()  # collections in the children would otherwise write to, and so copy, every shared page
    Forks(sock, channel, boot, settings).serve()


class Forks:
    """The loop of a template."""

    def __init__(self, sock: socket.socket, channel: Channel, boot: Boot, settings: Settings) -> None:
        self._settings = settings
        self._sock = sock
        self._channel = channel
        self._boot = boot
        self._decoder = frames.Decoder()
        self._descriptors: list[int] = []
        self._libc = _libc()
        if settings.slot_capabilities:
            importlib.import_module("squall_runner.slot")  # now, and not in each start
        self._users_handler = signal.getsignal(signal.SIGCHLD)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def serve(self) -> NoReturn:
        """Wait for requests and for children that end."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._wake_read:
                    _drain(self._wake_read)
                else:
                    self._receive()
            self._reap()

    def _receive(self) -> None:
        room = socket.CMSG_SPACE(16 * array.array("i").itemsize)
        data, ancillary, _, _ = self._sock.recvmsg(1 << 16, room, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
        if not data:
            end_now()
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                passed = array.array("i")
                passed.frombytes(raw[: len(raw) - len(raw) % passed.itemsize])
                self._descriptors.extend(passed)
        for frame in self._decoder.feed(data):
            self._on_frame(frame)

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind == ToRunner.FORK and frame.meta.get("here"):
            self._fork_here(frame.meta)
        elif frame.kind == ToRunner.FORK:
            count = 3 + int(frame.meta.get("namespaces", 0))
            descriptors, self._descriptors = self._descriptors[:count], self._descriptors[count:]
            try:
                self._fork(Fork(frame.meta["ticket"], descriptors, self._entrance(descriptors[3:])))
            except OSError as error:
                self._channel.send(FromRunner.FORK_FAILED, {"ticket": frame.meta["ticket"], "message": str(error)})
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _entrance(self, namespaces: list[int]) -> Optional[Any]:
        if not namespaces:
            return None
        slot = importlib.import_module("squall_runner.slot")  # ctypes takes 10 ms: not for those who need none
        return slot.Entrance(namespaces, slot.terms(self._settings))

    def _fork(self, fork: Fork) -> None:
        if fork.entrance is None:
            pid = self._forked(fork, None)
        else:
            pid, message = self._arrived(fork, fork.entrance)
            if message:
                raise OSError(message)
        self._channel.send(FromRunner.FORKED, {"ticket": fork.ticket, "pid": pid})

    def _arrived(self, fork: Fork, entrance: Any) -> tuple[int, str]:
        """The child, once it is in its slot or has said why not."""
        read, write = os.pipe()  # closed by a child that has arrived
        try:
            entrance.open()
            try:
                pid = self._forked(fork, write, read)
            finally:
                entrance.close()
        except OSError:
            os.close(read)
            raise
        finally:
            os.close(write)
        with os.fdopen(read, "rb") as pipe:
            return pid, pipe.read().decode("utf-8", "replace")

    def _forked(self, fork: Fork, arriving: Optional[int], *ours: int) -> int:
        """`arriving` tells that it has; `ours` it must not keep."""
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            for descriptor in ours:
                os.close(descriptor)
            self._become_container(fork, parent, arriving)
        return pid

    def _become_container(self, fork: Fork, parent: int, arriving: Optional[int]) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, self._users_handler or signal.SIG_DFL)
            os.setsid()
            if fork.entrance is None:
                _die_with_parent(self._libc, parent)
            else:  # its slot ends it
                fork.entrance.enter()
            sock, out, err = (os.dup(descriptor) for descriptor in fork.descriptors[:3])
            os.dup2(out, 1)
            os.dup2(err, 2)
            for descriptor in (out, err, self._wake_read, self._wake_write, *fork.descriptors):
                os.close(descriptor)
            self._sock.close()
            if arriving is not None:
                os.close(arriving)
            self._boot(socket.socket(fileno=sock))
        except OSError as error:
            if arriving is not None:
                os.write(arriving, str(error).encode()[:1000])
        finally:
            os._exit(1)  # whatever happens here, a child must not go on as a second template

    def _fork_here(self, meta: dict[str, Any]) -> NoReturn:
        """This is a copy of a template, made from an image of its memory, for one container: what the agent has given
        the copy is that container's. All the same it is a fork, so that what is mended in forks is mended here too:
        random streams of Python and of OpenSSL, and whatever libraries do in `os.register_at_fork`.
        """
        pid = os.fork()
        if pid == 0:
            self._become_only_container(meta)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (1, 2, self._sock.fileno()):
            os.dup2(null, descriptor)  # the agent hears when the container's are closed
        while True:
            ended, status = os.wait()  # also what it leaves behind
            if ended == pid:
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)

    def _become_only_container(self, meta: dict[str, Any]) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, self._users_handler or signal.SIG_DFL)
            os.setsid()
            for descriptor in (self._wake_read, self._wake_write):
                os.close(descriptor)
            importlib.import_module("squall_runner.slot").settle(meta["hostname"], self._settings.slot_capabilities)
            self._channel.send(FromRunner.FORKED, {"ticket": meta["ticket"], "pid": os.getpid()})
            self._boot(self._sock)
        except OSError as error:
            self._channel.send(FromRunner.FORK_FAILED, {"ticket": meta["ticket"], "message": str(error)})
        finally:
            os._exit(1)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._channel.send(FromRunner.EXITED, {"pid": pid, "status": status})


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 4096):
            pass
    except BlockingIOError:
        pass


def _libc() -> Optional[Any]:
    try:
        import ctypes

        return ctypes.CDLL(None)
    except (ImportError, OSError):
        return None


def _die_with_parent(libc: Optional[Any], parent: int) -> None:
    """SIGKILL when the template ends. Without libc: the closed socket ends this process, a little later."""
    if libc is not None and hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(137)


def _threads() -> list[str]:
    """A name per thread of the process, the main one first; threads that C code made have their kernel name."""
    try:
        tasks = sorted(int(name) for name in os.listdir("/proc/self/task"))
    except OSError:
        return [thread.name for thread in threading.enumerate()]
    named = {getattr(t, "native_id", None): t.name for t in threading.enumerate()}
    return [named.get(task) or _task_name(task) for task in tasks]


def _task_name(task: int) -> str:
    try:
        with open(f"/proc/self/task/{task}/comm") as file:
            return file.read().strip()
    except OSError:
        return str(task)


def _descriptors(control: socket.socket) -> list[str]:
    """What is open besides the three standard descriptors and the control socket."""
    found = []
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return []
    for name in names:
        if name in ("0", "1", "2", str(control.fileno())):
            continue
        try:
            found.append(os.readlink("/proc/self/fd/" + name))
        except OSError:
            continue  # the one that listed the folder
    return found


def _shared_memory() -> list[str]:
    """Names of the mappings that one process writes and all its forks see."""
    try:
        with open("/proc/self/maps") as maps:
            lines = [line.split(None, 5) for line in maps]
    except OSError:
        return []
    return sorted({fields[5].strip() for fields in lines if fields[1].startswith("rw") and fields[1][3:4] == "s"})


def _children() -> int:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return len(file.read().split())
    except OSError:  # a kernel that does not have the file: gVisor's
        return sum(_parent(name) == os.getpid() for name in os.listdir("/proc") if name.isdigit())


def _parent(process: str) -> int:
    try:
        with open(f"/proc/{process}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0
