"""A command beside the program of a slot: a process that enters the slot from outside, with the same rights and limits.

Runs in a child of the launcher. What comes from the slot is looked at only after the slot's root is this process's own:
program and folder are names in the container.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
from typing import Any, NoReturn

from squall_gpu_agent.backends.sandbox import first, kernel
from squall_gpu_agent.backends.sandbox.words import SlotPlan
from squall_isolation import seccomp

EVERYTHING = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWCGROUP
)


def live(plan: SlotPlan, pidfd: int, told: socket.socket, descriptors: list[int]) -> NoReturn:
    """Enter, start the command, tell its pid and then its end. `pidfd`: of the slot's first process."""
    try:
        wanted = read_words(descriptors[0])
        for group in plan.cgroups:
            with open(os.path.join(group, "cgroup.procs"), "w") as file:
                file.write("0")
        kernel.setns(pidfd, EVERYTHING)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        said, says = os.pipe()  # closed by a successful exec
        pid = os.fork()  # the pid namespace is for children
        if pid == 0:
            _become(plan, wanted, says, descriptors[1:])
        first.close_all_but(told.fileno(), said)
        with os.fdopen(said, "rb") as pipe:
            message = pipe.read().decode("utf-8", "replace")
        first.say(told, {"error": message} if message else {"pid": pid})
        _, status = os.waitpid(pid, 0)
        first.say(told, {"status": status})
    except (OSError, ValueError) as error:
        first.say(told, {"error": str(error)})
    finally:
        os._exit(0)


def read_words(descriptor: int) -> dict[str, Any]:
    """What the agent has written for this command."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        words: dict[str, Any] = json.loads(file.read())
    return words


def _become(plan: SlotPlan, wanted: dict[str, Any], says: int, outputs: list[int]) -> NoReturn:
    argv, env = wanted["argv"], wanted["env"]
    try:
        os.setsid()
        with contextlib.suppress(OSError):  # user code has taken it away
            os.chdir(wanted["cwd"])
        program = argv[0] if "/" in argv[0] else shutil.which(argv[0], path=env.get("PATH", os.defpath))
        if program is None:
            raise OSError(0, "it is not on the container's PATH")
        arrange(outputs)
        first.limit(plan)
        kernel.keep_capabilities(first.BASIC)
        kernel.filter_system_calls(seccomp.program(kernel.MACHINE))
        os.execve(program, argv, env)
    except (OSError, ValueError) as error:
        os.write(says, f"{argv[0]!r} cannot be started: {error}".encode()[:2000])
    finally:
        os._exit(127)


def arrange(given: list[int]) -> None:
    """The last of 0, 1 and 2 are those given, the others /dev/null; everything else closes at exec."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    wanted = [null] * (3 - len(given)) + given
    # Out of the way of 0 to 2 first, where they may be themselves.
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 16) for descriptor in wanted]
    for target, descriptor in enumerate(high):
        os.dup2(descriptor, target)
