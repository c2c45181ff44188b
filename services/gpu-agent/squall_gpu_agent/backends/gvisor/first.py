"""The first process of a slot with gVisor in it: makes a small root for runsc, then runs runsc when it is told.

runsc, its gofer and its sandbox live in the slot's namespaces, as unprivileged users of the host, and see of the host
what a slot is given and nothing else. No code of users runs on this side of them.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Sequence
from typing import Any, NoReturn

from squall_gpu_agent.backends.gvisor import words
from squall_gpu_agent.backends.sandbox import enter, filesystem, first, kernel
from squall_gpu_agent.backends.sandbox.filesystem import Gathered
from squall_gpu_agent.backends.sandbox.first import say
from squall_gpu_agent.backends.sandbox.words import SlotPlan
from squall_gpu_agent.backends.standing import drain

DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
FOLDERS = ("root", "proc", "bundle", "state", "files", "dev", "tmp")
NEW = "root"
"""In the stage, where the root is made."""
_ROOM = socket.CMSG_SPACE(4 * array.array("i").itemsize)


def live(plan: SlotPlan, found: Gathered, told: socket.socket, descriptors: list[int]) -> NoReturn:
    """The whole life of a slot."""
    try:
        wake_read, wake_write = os.pipe()
        for descriptor in (wake_read, wake_write):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        _build(plan, found)
        kernel.set_hostname(plan.hostname)
        first.loopback_up()
        first.close_all_but(told.fileno(), wake_read, wake_write)
        say(told, {"who": "init"})
        _First(told).serve(wake_read)
    except (OSError, ValueError) as error:
        say(told, {"error": str(error)})
    finally:
        os._exit(1)


def _build(plan: SlotPlan, found: Gathered) -> None:
    """In the slot's namespaces, in the stage: a root in memory, and in it everything that runsc needs."""
    kernel.mount("squall", NEW, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=4m")
    for name in FOLDERS:
        os.mkdir(f"{NEW}/{name}")
    lower = ":".join(reversed(found.lowers))
    layers = f"lowerdir={lower},upperdir=writable/upper,workdir=writable/work,userxattr,volatile"
    kernel.mount("overlay", NEW + words.ROOT, "overlay", 0, layers)
    # The kernel allows this only where the host's is in full view, so before the root changes.
    kernel.mount("proc", f"{NEW}/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    # By a file in there runsc of 2022 tells the host's network from others; newer kernels show it in all.
    kernel.mount("squall", f"{NEW}/proc/sys/net/core", "tmpfs", kernel.MS_RDONLY, "size=0,mode=755")
    for tree, target, is_folder in found.trees:
        if where := _place_in_root(plan, target):
            _placeholder(NEW + where, is_folder)
            kernel.attach_tree(tree, NEW + where)
        os.close(tree)
    for number, overlay in enumerate(plan.overlays):
        trees = filesystem.mount_volume(number, overlay)
        for tree, where in zip(trees, words.volume_places(number), strict=True):
            os.mkdir(NEW + where)
            kernel.attach_tree(tree, NEW + where)
            os.close(tree)
    for number, text in enumerate(plan.files.values()):
        with open(NEW + words.file_place(number), "w") as file:
            file.write(text)
    kernel.pivot_root(NEW)


def _place_in_root(plan: SlotPlan, target: str) -> str:
    """Where something from the host is for runsc; "" = nowhere."""
    if target in words.OF_RUNSC or target in DEVICES:
        return target
    return next((words.place(number) for number, bind in enumerate(plan.binds) if bind.target == target), "")


class _First:
    """Until runsc ends, or the launcher's end of the socket is closed."""

    def __init__(self, told: socket.socket) -> None:
        self._told = told
        self._main = 0
        self._main_ended: int | None = None
        """Its status, while the image of its memory is not finished yet."""
        self._checkpoint: int | None = None
        """Pid of who makes that image: it ends the container, and then itself."""
        self._commands: dict[int, int] = {}
        """Tickets by pid."""

    def serve(self, wake: int) -> NoReturn:
        poll = select.poll()
        poll.register(self._told, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == wake:
                    drain(wake)
                else:
                    self._receive()
            self._bury()

    def _receive(self) -> None:
        data, ancillary, _, _ = self._told.recvmsg(4096, _ROOM, socket.MSG_CMSG_CLOEXEC)
        if not data:
            os._exit(0)  # the launcher has ended, or let go of this slot
        descriptors = _passed(ancillary)
        try:
            self._start(json.loads(data), descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _start(self, order: dict[str, Any], descriptors: list[int]) -> None:
        ticket = order.get("ticket")
        told = enter.read_words(descriptors.pop())
        try:
            pid = self._run(order, told, descriptors)
        except OSError as error:
            say(self._told, {"ticket": ticket, "error": str(error)})
            return
        if ticket is None:
            self._main = pid
            say(self._told, {"who": "program"}, pid)
        else:
            self._commands[pid] = ticket
            say(self._told, {"who": "command", "ticket": ticket}, pid)

    def _run(self, order: dict[str, Any], told: dict[str, Any], descriptors: list[int]) -> int:
        if "checkpoint" in told:
            argv = [*told["runsc"], "checkpoint", f"--image-path={words.IMAGE}", words.NAME]
            self._checkpoint = _spawn(argv, descriptors)
            return self._checkpoint
        if "ticket" in order:
            path = _command_file(order["ticket"])
            last = ["exec", f"--process={path}", f"--internal-pid-file={_pid_file(order['ticket'])}", words.NAME]
        else:
            path, last = f"{words.BUNDLE}/config.json", [f"--bundle={words.BUNDLE}", words.NAME]
            last = ["restore", f"--image-path={words.IMAGE}", *last] if "restore" in told else ["run", *last]
        with open(path, "w") as file:
            json.dump(told["about"], file)
        return _spawn([*told["runsc"], *last], descriptors)

    def _bury(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._main:
                    self._main_ended = status
                elif pid == self._checkpoint:
                    self._checkpoint = None
                if pid in self._commands:
                    self._on_command_end(self._commands.pop(pid), status)
                if self._main_ended is not None and self._checkpoint is None:
                    say(self._told, {"status": self._main_ended})
                    os._exit(0)

    def _on_command_end(self, ticket: int, status: int) -> None:
        if os.WIFSIGNALED(status):  # only its client was killed: the command itself runs on in there
            with contextlib.suppress(OSError, ValueError), open(_pid_file(ticket)) as file:
                kill = [words.RUNSC, f"--root={words.STATE}", "kill", f"--pid={int(file.read())}", words.NAME, "KILL"]
                _spawn(kill, [])
        for path in (_command_file(ticket), _pid_file(ticket)):
            with contextlib.suppress(OSError):
                os.unlink(path)
        say(self._told, {"ticket": ticket, "status": status})


def _command_file(ticket: int) -> str:
    return f"{words.BUNDLE}/command-{ticket}.json"


def _pid_file(ticket: int) -> str:
    return f"{words.BUNDLE}/command-{ticket}.pid"


def _spawn(argv: Sequence[str], descriptors: list[int]) -> int:
    """`descriptors`: see `enter.arrange`. It leads a process group of its own, by which it can be killed at once."""
    leads, led = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            os.close(led)
            enter.arrange(descriptors)
            os.execve(argv[0], list(argv), {"PATH": "/", "TMPDIR": "/tmp"})
        finally:
            os._exit(127)
    os.close(led)
    os.read(leads, 1)  # until it has closed its end
    os.close(leads)
    return pid


def _passed(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    passed = array.array("i")
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            passed.frombytes(raw[: len(raw) - len(raw) % passed.itemsize])
    return list(passed)


def _placeholder(path: str, folder: bool) -> None:
    if folder:
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
