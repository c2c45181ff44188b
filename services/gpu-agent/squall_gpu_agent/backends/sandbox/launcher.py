"""The launcher: the standing parent of sandboxes. The only part of the platform that uses the rights of root.

Owns slots: user, pid, mount, net, ipc, uts and cgroup namespaces around an overlay root, with a first process of ours
in each. It takes orders from the agent alone, over an inherited socket, and reads nothing that a container wrote.
Everything it mounts is in a mount namespace of its own, so a killed launcher leaves no mount; every first process ends
with the launcher, and with the first process the kernel ends all others of its slot.

The way of a slot: `make` forks a child, which joins the cgroups and gathers what comes from the host (the last act with
the host's rights), enters the user namespace, and makes the others; its child is the slot's first process (first.py).

Runs as its own process: `python -I -c "from squall_gpu_agent.backends.sandbox.launcher import main; main()"
<descriptor> <stage folder>`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from squall_gpu_agent.backends.sandbox import checks, enter, filesystem, first, kernel
from squall_gpu_agent.backends.sandbox.kernel import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MS_PRIVATE,
    MS_REC,
)
from squall_gpu_agent.backends.sandbox.words import FromLauncher, SlotPlan, ToLauncher, plan_of
from squall_gpu_agent.backends.standing import StandingParent
from squall_runner.frames import Frame

IDS_OF_A_SLOT = 65536
OWN_NAMESPACES = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
SAID_BYTES = 4096


class Slot:
    """What the launcher knows of one."""

    def __init__(self, plan: SlotPlan, told: socket.socket) -> None:
        self.plan = plan
        self.told = told
        """What its first process says."""
        self.init = 0
        self.pid = 0
        self.pidfd = -1
        self.doomed = False
        """To be killed as soon as it is there."""
        self.status: int | None = None
        self.error = ""


class Launcher(StandingParent):
    """The loop."""

    gather = staticmethod(filesystem.gather)
    """What a slot is given of the host."""
    live = staticmethod(first.live)
    """The life of a slot's first process."""

    def __init__(self, sock: socket.socket, stage: str) -> None:
        super().__init__(sock)
        self._stage = stage
        self._slots: dict[str, Slot] = {}
        self._user_namespaces: dict[int, int] = {}

    def on_frame(self, frame: Frame) -> None:
        """See `StandingParent.on_frame`."""
        match frame.kind:
            case ToLauncher.MAKE:
                self._make(plan_of(frame.meta))
            case ToLauncher.KILL:
                self._kill(self._slots.get(frame.meta["slot"]))
            case ToLauncher.PLACE:
                self._place(frame.meta)
            case ToLauncher.REMOVE:
                self._remove(frame.meta["slot"])
            case ToLauncher.ENTER:
                descriptors = self.take_descriptors(3)
                try:
                    self._enter(frame.meta["ticket"], self._slots.get(frame.meta["slot"]), descriptors)
                except OSError as error:
                    self.send(FromLauncher.ENTERED, {"ticket": frame.meta["ticket"], "pid": 0, "message": str(error)})
                finally:
                    for descriptor in descriptors:
                        os.close(descriptor)
            case _:
                pass  # a newer agent's; it runs with this file, so there is none

    def on_exit(self, pid: int, status: int) -> None:
        """See `StandingParent.on_exit`. The ends of slots are seen at their pidfds, wherever their parents are."""

    def end(self) -> NoReturn:
        """See `StandingParent.end`. All children are reaped, as they come, not only first processes: the first process
        of a template does not end before everything that was on its way into its namespace is reaped, and that is ours
        while a slot is being made."""
        for slot in self._slots.values():
            self._kill(slot)
            slot.told.close()  # ends a first process that has not told its pid yet
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        os._exit(0)

    # --- making ---

    def _make(self, plan: SlotPlan) -> None:
        descriptors = self.take_descriptors(3 if plan.run else 0)
        try:
            self._begin(plan, descriptors)
        except OSError as error:  # as when too many files are open: the launcher goes on for all others
            self.send(FromLauncher.NOT_MADE, {"slot": plan.slot, "message": str(error)})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _begin(self, plan: SlotPlan, descriptors: list[int]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        slot = self._slots[plan.slot] = Slot(plan, ours)
        around = -1
        try:
            userns = self._user_namespace(plan.ids)
            filesystem.make_writable(plan)
            around = self._pid_namespace(plan.inside) if plan.inside else -1
            if os.fork() == 0:
                self._become_slot(plan, theirs, descriptors, userns, around)
        except OSError as error:
            slot.error = str(error)
        finally:
            theirs.close()
            if around >= 0:
                os.close(around)
        self.watch(ours.fileno(), lambda: self._on_said(slot))

    def _become_slot(
        self, plan: SlotPlan, told: socket.socket, descriptors: list[int], userns: int, around: int
    ) -> NoReturn:
        """In the child. Comes back from nothing: whatever happens, it must not go on as a second launcher."""
        try:
            self.forget_signals()
            os.setsid()
            _join(plan.cgroups)
            kernel.unshare(CLONE_NEWNS)
            found = self.gather(plan, self._stage, userns)
            if around >= 0:
                kernel.setns(around, CLONE_NEWPID)
                if os.fork() != 0:
                    os._exit(0)
            kernel.setns(userns, CLONE_NEWUSER)
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            kernel.unshare(OWN_NAMESPACES)
            if os.fork() == 0:
                self.live(plan, found, told, descriptors)
        except (OSError, ValueError) as error:
            first.say(told, {"error": str(error)})
        finally:
            os._exit(0)

    def _user_namespace(self, ids: int) -> int:
        """With 65,536 ids of the host from `ids` on; the host's root is not among them."""
        if ids not in self._user_namespaces:
            self._user_namespaces[ids] = _make_user_namespace(ids)
        return self._user_namespaces[ids]

    def _pid_namespace(self, template: str) -> int:
        around = self._slots.get(template)
        if around is None or not around.init:
            raise ProcessLookupError(0, "the template has ended")
        return os.open(f"/proc/{around.init}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    # --- what first processes say ---

    def _on_said(self, slot: Slot) -> None:
        said, pid = _read(slot.told)
        if said is None:
            self._on_silent(slot)
        else:
            self._hear(slot, said, pid)

    def _hear(self, slot: Slot, said: dict[str, Any], pid: int) -> None:
        if "error" in said:
            slot.error = str(said["error"])
        elif "status" in said:
            slot.status = int(said["status"])
        elif said["who"] == "init":
            try:
                slot.init, slot.pidfd = pid, os.pidfd_open(pid)
            except ProcessLookupError:
                return  # its template's first process has buried it already; its silence comes next
            except OSError as error:  # too many files are open; the first process ends with the socket
                slot.error = str(error)
                self._on_silent(slot)
                return
            if slot.doomed:
                self._kill(slot)
            elif slot.plan.run is None:
                self._made(slot)
        else:
            slot.pid = pid
            self._made(slot)

    def _made(self, slot: Slot) -> None:
        self.send(FromLauncher.MADE, {"slot": slot.plan.slot, "init": slot.init, "pid": slot.pid})

    def _on_silent(self, slot: Slot) -> None:
        """Its first process has ended, or was never there. Its pidfd tells when the last of its processes is gone."""
        self.unwatch(slot.told.fileno())
        slot.told.close()
        if slot.pidfd >= 0:
            self.watch(slot.pidfd, lambda: self._on_gone(slot))
        else:
            self._on_gone(slot)

    def _on_gone(self, slot: Slot) -> None:
        if slot.pidfd >= 0:
            self.unwatch(slot.pidfd)
            os.close(slot.pidfd)
        was_made = slot.init and (slot.pid or slot.plan.run is None)
        slot.init, slot.pidfd = 0, -1
        name = slot.plan.slot
        if was_made:
            self.send(FromLauncher.ENDED, {"slot": name, "status": slot.status})
        else:
            message = slot.error or "its first process was killed while it started"
            self.send(FromLauncher.NOT_MADE, {"slot": name, "message": message})

    # --- ending ---

    def _kill(self, slot: Slot | None) -> None:
        """Its first process; the kernel ends all others of the pid namespace with it."""
        if slot is None:
            return
        slot.doomed = True
        if slot.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(slot.pidfd, signal.SIGKILL)

    def _remove(self, name: str) -> None:
        slot = self._slots.pop(name, None)
        if slot is None:
            return
        if slot.plan.device:
            self._unmount_beside(slot.plan.folder)
        else:
            _unmount(slot.plan.folder)

    def _unmount_beside(self, folder: str) -> None:
        """The last user of a large disk waits until the host has its room back: not this loop."""
        try:
            child = os.fork()
        except OSError:
            _unmount(folder)
            return
        if child == 0:
            try:
                self.forget_signals()
                _unmount(folder)
            finally:
                os._exit(0)

    # --- commands beside the program ---

    def _enter(self, ticket: int, slot: Slot | None, descriptors: list[int]) -> None:
        if slot is None or slot.pidfd < 0:
            raise OSError(0, "the container has ended")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with theirs:
            try:
                child = os.fork()
            except OSError:
                ours.close()
                raise
            if child == 0:
                self.forget_signals()
                enter.live(slot.plan, slot.pidfd, theirs, descriptors)
        status: list[int | None] = [None]
        self.watch(ours.fileno(), lambda: self._on_command(ticket, ours, status))

    def _on_command(self, ticket: int, told: socket.socket, status: list[int | None]) -> None:
        said, _ = _read(told)
        if said is None:
            self.unwatch(told.fileno())
            told.close()
            self.send(FromLauncher.LEFT, {"ticket": ticket, "status": status[0]})
        elif "status" in said:
            status[0] = int(said["status"])
        else:
            meta = {"ticket": ticket, "pid": int(said.get("pid", 0)), "message": str(said.get("error", ""))}
            self.send(FromLauncher.ENTERED, meta)

    # --- forks of templates ---

    def _place(self, request: dict[str, Any]) -> None:
        slot, template = self._slots.get(request["slot"]), self._slots.get(request["template"])
        pid, message = 0, "its slot or its template has ended"
        if slot is not None and slot.init and template is not None and template.pid:
            pid, message = checks.placed(template.pid, slot.init)
        for group in slot.plan.cgroups if slot is not None and pid else ():
            try:
                with open(os.path.join(group, "cgroup.procs"), "w") as file:
                    file.write(str(pid))
            except OSError as error:
                pid, message = 0, f"it could not be counted: {error}"
                break
        if slot is not None:
            slot.pid = pid
        self.send(FromLauncher.PLACED, {"ticket": request["ticket"], "pid": pid, "message": message})


def main(kind: type[Launcher] = Launcher) -> NoReturn:
    """Entry of the process."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    kernel.unshare(CLONE_NEWNS)
    kernel.mount("none", "/", None, MS_REC | MS_PRIVATE)
    kind(sock, sys.argv[2]).run()


def _join(groups: Sequence[str]) -> None:
    """This process, which has one thread, counts in them from now on."""
    for group in groups:
        # In cgroup v1 a thread that moves itself need not wait for the whole machine: 0.5 ms instead of 10 (measured).
        own = os.path.join(group, "tasks")
        with open(own if os.path.exists(own) else os.path.join(group, "cgroup.procs"), "w") as file:
            file.write("0")


def _unmount(folder: str) -> None:
    with contextlib.suppress(OSError):  # it was never mounted
        kernel.unmount(folder)


def _make_user_namespace(ids: int) -> int:
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go[1])  # or this child would wait for itself
            kernel.unshare(CLONE_NEWUSER)
            os.write(ready[1], b"1")
            os.read(go[0], 1)
        finally:
            os._exit(0)
    try:
        os.close(ready[1])
        os.close(go[0])
        if not os.read(ready[0], 1):
            raise OSError(0, "user namespaces are not allowed here (sysctl user.max_user_namespaces)")
        for kind in ("uid", "gid"):
            with open(f"/proc/{pid}/{kind}_map", "w") as file:
                file.write(f"0 {ids} {IDS_OF_A_SLOT}")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready[0])
        os.close(go[1])
        os.waitpid(pid, 0)


def _read(told: socket.socket) -> tuple[dict[str, Any] | None, int]:
    """What a process of ours says, and who it is; None when it has ended."""
    try:
        data, ancillary, _, _ = told.recvmsg(SAID_BYTES, socket.CMSG_SPACE(12))
    except OSError:
        return None, 0
    return (json.loads(data) if data else None), _sender(ancillary)


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The host pid of who sent it: the kernel's word."""
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            return int(struct.unpack("3i", raw)[0])
    return 0
