"""How much memory a process tree holds. Reads /proc; decides nothing, kills nothing."""

from __future__ import annotations

from pathlib import Path

PAGE_KIB = 4
_PROC = Path("/proc")


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for parent in found:
        found.extend(_children(parent))
    return found


def over_limit(pid: int, limit_mib: int) -> bool:
    """Whether the tree holds more than the limit.

    Resident sizes count pages that forked processes share once per process, so they only raise the suspicion;
    proportional sizes, which the kernel takes milliseconds to add up for a large process, decide.
    """
    processes = tree(pid)
    if sum(map(_resident_kib, processes)) <= limit_mib * 1024:
        return False
    if len(processes) == 1:
        return True
    return sum(map(_proportional_kib, processes)) > limit_mib * 1024


def _children(pid: int) -> list[int]:
    try:
        tasks = list((_PROC / str(pid) / "task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def _resident_kib(pid: int) -> int:
    try:
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * PAGE_KIB
    except (OSError, IndexError):
        return 0


def _proportional_kib(pid: int) -> int:
    try:
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return _resident_kib(pid)


def machine_oom_kills() -> int:
    """How often this machine's kernel has killed a process for want of memory; 0 where it does not say."""
    try:
        for line in (_PROC / "vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
