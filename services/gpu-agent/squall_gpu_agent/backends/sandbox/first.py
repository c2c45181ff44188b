"""The first process of a slot: builds what the slot sees, starts its program, then only buries the dead.

Runs in the slot's namespaces, where it is pid 1; the kernel ends every other process of the slot with it. It ends when
the program or the launcher does. From the moment on at which code of users runs, it has no capability, and nobody in
the slot may look into it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
from typing import Any, NoReturn

from squall_gpu_agent.backends.sandbox import filesystem, kernel
from squall_gpu_agent.backends.sandbox.filesystem import Gathered
from squall_gpu_agent.backends.sandbox.words import LDCONFIG, Run, SlotPlan
from squall_gpu_agent.backends.standing import arrange, drain
from squall_isolation import seccomp

# chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, setfcap: of the slot's own user
# namespace, so over its own files, processes and network alone.
BASIC = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 31))
# sys_chroot and sys_admin: what setns asks for. Its filter allows no other call that they would open.
TEMPLATE = BASIC | {18, 21}
_GET_FLAGS, _SET_FLAGS, _IFF_UP = 0x8913, 0x8914, 1
SAID_BYTES, SAID_CHARACTERS = 4000, 300
"""Most that the launcher reads at once, and characters of a text that fit into it whatever they are."""


def say(told: socket.socket, words: dict[str, Any], pid: int = 0) -> None:
    """Tell the launcher, with the pid (the sender's, or one it answers for) as the kernel knows it."""
    credentials = struct.pack("3i", pid or os.getpid(), os.getuid(), os.getgid())
    data = json.dumps(words).encode()
    if len(data) > SAID_BYTES:  # names of users' programs are in it: half a JSON text would end the launcher
        shorter = {name: word[:SAID_CHARACTERS] if isinstance(word, str) else word for name, word in words.items()}
        data = json.dumps(shorter).encode()
    with contextlib.suppress(OSError):  # the launcher is gone, and this process with it
        told.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)])


def live(plan: SlotPlan, found: Gathered, told: socket.socket, descriptors: list[int]) -> NoReturn:
    """The whole life of a slot."""
    try:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        wake_read, wake_write = os.pipe()
        for descriptor in (wake_read, wake_write):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        filesystem.build(plan, found)
        kernel.set_hostname(plan.hostname)
        loopback_up()
        _find_libraries(plan)
        say(told, {"who": "init"})
        main = _start(plan, plan.run, told, descriptors) if plan.run else 0
        if main:
            say(told, {"who": "program"}, main)
        kernel.keep_capabilities(frozenset())
        close_all_but(told.fileno(), wake_read, wake_write)
        _bury(main, told, wake_read)
    except (OSError, ValueError) as error:
        say(told, {"error": str(error)})
    finally:
        os._exit(1)


def _find_libraries(plan: SlotPlan) -> None:
    """Let programs find the libraries of devices. Reads what the image has, so it has no more rights than its code."""
    if not plan.libraries:
        return
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            arrange([os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)] * 3)
            limit(plan)
            kernel.keep_capabilities(BASIC)
            kernel.filter_system_calls(seccomp.program(kernel.MACHINE))
            os.execve(LDCONFIG, [LDCONFIG, "-C", "/etc/ld.so.cache", *plan.libraries], {})
        finally:
            os._exit(127)
    _, status = os.waitpid(pid, 0)
    if status:
        raise OSError(0, f"ldconfig could not find the libraries of its devices (status {status})")


def _start(plan: SlotPlan, run: Run, told: socket.socket, descriptors: list[int]) -> int:
    """The pid of the program. Raises `OSError` when it cannot be started."""
    read, write = os.pipe()  # closed by a successful exec
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            arrange(descriptors)
            limit(plan)
            kernel.keep_capabilities(TEMPLATE if run.may_fork_into_slots else BASIC)
            allowed = seccomp.program(kernel.MACHINE, may_join_slots=run.may_fork_into_slots)
            kernel.filter_system_calls(allowed)
            os.execve(run.argv[0], run.argv, run.env)
        except (OSError, ValueError) as error:
            os.write(write, f"{run.argv[0]} of the image cannot be started: {error}".encode()[:2000])
        finally:
            os._exit(127)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        message = pipe.read().decode("utf-8", "replace")
    if message:
        raise OSError(0, message)
    return pid


def limit(plan: SlotPlan) -> None:
    """Of this process and all that it starts."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = plan.open_files if most == resource.RLIM_INFINITY else min(plan.open_files, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _bury(main: int, told: socket.socket, wake: int) -> NoReturn:
    """Until the program ends, or the launcher's end of the socket is closed."""
    poll = select.poll()
    poll.register(told, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor != wake:
                os._exit(0)  # the launcher never says anything: this is its end
            drain(wake)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == main:
                    say(told, {"status": status})
                    os._exit(0)


def loopback_up() -> None:
    """Of this network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        name, flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, _GET_FLAGS, request))
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", name, flags | _IFF_UP))


def close_all_but(*kept: int) -> None:
    """All descriptors of this process."""
    low = 0
    for descriptor in sorted(kept):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 65536)
