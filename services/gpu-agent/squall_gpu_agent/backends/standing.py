"""A standing parent: a small process beside the agent that starts others and outlives none of them.

Owns what the warden and the sandbox launcher have in common: frames and descriptors from the agent, children that are
reaped, an end when the agent is gone, however it went. Single-threaded on purpose: forking it costs a millisecond, and
the kernel refuses to move a process with threads into other namespaces.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
from collections.abc import Callable
from typing import Any, NoReturn

from squall_runner.frames import BadFrame, Decoder, Frame, encode

PR_SET_CHILD_SUBREAPER = 36
DESCRIPTORS_AT_ONCE = 16


class StandingParent:
    """The loop. Subclasses say what frames mean, and how everything is ended."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._libc = ctypes.CDLL(None)
        self._decoder = Decoder()
        self._descriptors: list[int] = []
        self._poll = select.poll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._wake_read, self._wake_write = os.pipe()
        for descriptor in (self._wake_read, self._wake_write):
            os.set_blocking(descriptor, False)

    def on_frame(self, frame: Frame) -> None:
        """The agent wants something."""
        raise NotImplementedError

    def on_exit(self, pid: int, status: int) -> None:
        """A child, or an orphan that came to this process, has ended."""
        raise NotImplementedError

    def after_round(self) -> None:
        """What was put off until the frames and ends of this moment were seen."""

    def end(self) -> NoReturn:
        """The agent is gone: kill everything, and end."""
        raise NotImplementedError

    def run(self) -> NoReturn:
        """Serve the agent until it is gone."""
        if hasattr(self._libc, "prctl"):
            self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the agent decides when this ends, by closing the socket
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._poll.register(self._sock, select.POLLIN)
        self._poll.register(self._wake_read, select.POLLIN)
        alive = True
        while alive:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._wake_read:
                    drain(self._wake_read)
                elif descriptor == self._sock.fileno():
                    alive = self._receive()
                elif descriptor in self._watched:
                    self._watched[descriptor]()
            self._reap()
            self.after_round()
        self.end()

    def watch(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        """Call it whenever there is something to read."""
        self._watched[descriptor] = on_readable
        self._poll.register(descriptor, select.POLLIN)

    def unwatch(self, descriptor: int) -> None:
        """Before it is closed."""
        if self._watched.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def take_descriptors(self, count: int) -> list[int]:
        """Those that came with the frame; ours to close."""
        taken, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        return taken

    def send(self, kind: int, meta: dict[str, Any]) -> None:
        """Tell the agent."""
        with contextlib.suppress(OSError):  # the agent is gone: `_receive` sees it next
            self._sock.sendall(encode(kind, meta))

    def forget_signals(self) -> None:
        """In a forked child: as any program expects them."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)

    def _receive(self) -> bool:
        room = socket.CMSG_SPACE(DESCRIPTORS_AT_ONCE * array.array("i").itemsize)
        try:
            data, ancillary, _, _ = self._sock.recvmsg(1 << 16, room, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
            for level, kind, raw in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    passed = array.array("i")
                    passed.frombytes(raw[: len(raw) - len(raw) % passed.itemsize])
                    self._descriptors.extend(passed)
            frames = self._decoder.feed(data)
        except (OSError, BadFrame):
            return False
        for frame in frames:
            self.on_frame(frame)
        return bool(data)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.on_exit(pid, status)


def drain(descriptor: int) -> None:
    """Read what woke us."""
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, 4096):
            pass


def arrange(descriptors: list[int]) -> None:
    """0 = /dev/null, 1 and 2 = the pipes, 3 = the socket. All others close at exec."""
    null = os.open("/dev/null", os.O_RDONLY)
    sock, out, err = descriptors
    # Out of the way of 0 to 3 first, where they may be themselves.
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 16) for descriptor in (null, out, err, sock)]
    for target, descriptor in enumerate(high):
        os.dup2(descriptor, target)
