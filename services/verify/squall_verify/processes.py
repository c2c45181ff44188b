"""The process table, as far as the harness looks at it: who runs, whose child it is, what it uses."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PRCTL = ctypes.CDLL(None).prctl


@dataclass(frozen=True, slots=True)
class Process:
    """One entry of the process table."""

    pid: int
    parent: int
    command: str
    state: str
    """As in /proc/PID/stat: R, S, T (stopped), Z (ended, not yet waited for) ..."""

    @property
    def is_runner(self) -> bool:
        """Whether it is a container or a template."""
        return "squall_runner" in self.command

    def signal(self, which: signal.Signals) -> None:
        """Nothing happens when it is gone already."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, which)


def process(pid: int) -> Process | None:
    """The process of that id; None when there is none."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return Process(pid, int(parent), command, state)


def table() -> Iterator[Process]:
    """Every process of this machine."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := process(int(entry))):
            yield found


def descendants(pid: int) -> list[Process]:
    """Children, their children and so on of a process, parents first."""
    everything = list(table())
    found: list[Process] = []
    parents = {pid}
    while more := [p for p in everything if p.parent in parents and p not in found]:
        found += more
        parents = {p.pid for p in more}
    return found


def belonging_to(folder: Path) -> list[Process]:
    """Living processes that name a folder in their environment, command line or working directory; not this one."""
    wanted = os.fsencode(folder)
    return [p for p in table() if p.pid != os.getpid() and p.state != "Z" and _mentions(p.pid, wanted)]


def _mentions(pid: int, wanted: bytes) -> bool:
    for source in ("environ", "cmdline"):
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{pid}/{source}").read_bytes():
                return True
    with contextlib.suppress(OSError):
        return wanted in os.fsencode(os.readlink(f"/proc/{pid}/cwd"))
    return False


def rss_mib(pid: int) -> float:
    """Resident memory of a process, 0 when it is gone."""
    return _memory(pid, "VmRSS")


def peak_rss_mib(pid: int) -> float:
    """The most resident memory that a process has had since `reset_peak`."""
    return _memory(pid, "VmHWM")


def reset_peak(pid: int) -> None:
    """Begin a new measurement of `peak_rss_mib`."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _memory(pid: int, name: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":")), 0.0)


def ancestors(of: Process) -> Iterator[Process]:
    """Parent, its parent, and so on."""
    present = process(of.parent)
    while present is not None and present.pid > 1:
        yield present
        present = process(present.parent)


def end_with_parent() -> None:
    """Runs between fork and exec: who started a process and is killed must not leave it behind."""
    _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)
