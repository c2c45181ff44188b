"""Is a process what it should be? Asked of the kernel, not of the process: code of users ran in it before.

Reads /proc only.
"""

from __future__ import annotations

import os

from squall_gpu_agent.backends.sandbox import first

KINDS = ("pid", "mnt", "net", "ipc", "uts", "cgroup", "user")
_CAPABILITIES = sum(1 << number for number in first.BASIC)


def placed(template: int, init: int) -> tuple[int, str]:
    """The host pid of the template's child that is in the slot of `init`, or 0 and why there is none to be used."""
    wanted = {kind: _namespace(init, kind) for kind in KINDS}
    for pid in _children(template):
        if _namespace(pid, "pid") != wanted["pid"]:
            continue
        for kind in KINDS:
            if _namespace(pid, kind) != wanted[kind]:
                return 0, f"the fork did not enter its {kind} namespace"
        return (pid, "") if not (wrong := _wrong(pid)) else (0, wrong)
    return 0, "the fork is not in its slot"


def _wrong(pid: int) -> str:
    status = _status(pid)
    for name in ("CapPrm", "CapEff", "CapBnd"):
        if int(status.get(name, "-1"), 16) & ~_CAPABILITIES:
            return f"the fork has kept capabilities ({name} {status.get(name)})"
    if int(status.get("CapAmb", "-1"), 16):
        return "the fork has ambient capabilities"
    if status.get("NoNewPrivs") != "1" or status.get("Seccomp") != "2" or int(status.get("Seccomp_filters", 0)) < 2:
        return "the fork has not set its second filter"
    if status.get("Threads") != "1":
        return "the fork has more than one thread"
    return ""


def _status(pid: int) -> dict[str, str]:
    try:
        with open(f"/proc/{pid}/status") as file:
            return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    except OSError:
        return {}


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def _namespace(pid: int, kind: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""
