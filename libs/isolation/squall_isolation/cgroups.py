"""Control groups: one for each sandbox or build step, below one for all of them, in cgroup v1, v2, or a mix of both.

Owns the folders. Runs as the host's root, in threads of agents and builders. Attaching may take the kernel 12 ms: for
sandboxes that is the launcher's, in the process that is to be attached.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

NEEDED = ("memory", "pids", "cpu")
NO_LIMIT = -1
REMOVE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one sandbox."""

    memory_mib: int | None
    """Swap is never added to it."""
    processes: int | None
    """Processes and threads."""
    cpu: float
    """Its share when processors are short."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where a controller is."""

    version: int
    parent: Path
    """Folder below which the agent's own group of sandboxes is made."""


@dataclass(frozen=True, slots=True)
class Group:
    """Folders of one sandbox, one in each hierarchy that is used."""

    folders: dict[str, Path]
    """By controller."""
    versions: dict[str, int]

    @property
    def paths(self) -> list[str]:
        """Each once: v2 has all controllers in one."""
        return list(dict.fromkeys(str(path) for path in self.folders.values()))

    def oom_kills(self) -> int:
        """How often the kernel has killed a process of it for want of memory."""
        name = "memory.events" if self.versions["memory"] == 2 else "memory.oom_control"
        return _count(self.folders["memory"] / name, "oom_kill")

    def refused_processes(self) -> int:
        """How often it could not start one more process or thread."""
        return _count(self.folders["pids"] / "pids.events", "max")

    def processes(self) -> list[int]:
        """Of it alone, as this machine numbers them."""
        try:
            return [int(pid) for pid in Path(self.paths[0], "cgroup.procs").read_text().split()]
        except OSError:
            return []  # it is gone

    def take(self, pid: int) -> None:
        """From now on a process, and all that it starts, counts in it."""
        for path in self.paths:
            Path(path, "cgroup.procs").write_text(str(pid))

    def cap_cpu(self, cores: float) -> None:
        """From now on, no more than so many cores. Not before it is ready: imports under a small cap take for ever."""
        period = 100_000
        quota, folder = max(1_000, int(cores * period)), self.folders["cpu"]
        if self.versions["cpu"] == 2:
            (folder / "cpu.max").write_text(f"{quota} {period}")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(period))
            (folder / "cpu.cfs_quota_us").write_text(str(quota))

    def remove(self) -> None:
        """Nothing runs in it any more; the kernel may need a moment to see that."""
        for path in self.paths:
            _remove(Path(path))


class Groups:
    """All sandboxes of one agent."""

    def __init__(self, name: str, found: dict[str, Hierarchy]) -> None:
        self._found = found
        self._top = {controller: h.parent / name for controller, h in found.items()}

    def open(self, memory_mib: int | None) -> None:
        """Make the group of all, which together get so much memory; end what an agent that was killed left in it."""
        for controller, folder in self._top.items():
            _clear(folder)
            folder.mkdir(exist_ok=True)
            if self._found[controller].version == 2:
                (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in self._of(2)))
        if memory_mib is not None:
            self._limit_memory(self._top["memory"], memory_mib)

    def make(self, name: str, limits: Limits) -> Group:
        """The group of one sandbox. Raises `OSError`; then there is none."""
        folders = {controller: top / name for controller, top in self._top.items()}
        group = Group(folders, {controller: h.version for controller, h in self._found.items()})
        try:
            self._make(group, limits)
        except OSError:
            group.remove()
            raise
        return group

    def _make(self, group: Group, limits: Limits) -> None:
        folders = group.folders
        for path in group.paths:
            Path(path).mkdir()
        if limits.memory_mib is not None:
            self._limit_memory(folders["memory"], limits.memory_mib)
        (folders["pids"] / "pids.max").write_text("max" if limits.processes is None else str(limits.processes))
        shares = max(2, int(limits.cpu * 1024))
        if self._found["cpu"].version == 2:
            (folders["cpu"] / "cpu.weight").write_text(str(1 + (shares - 2) * 9999 // 262142))
        else:
            (folders["cpu"] / "cpu.shares").write_text(str(shares))

    def close(self) -> None:
        """Nothing runs in any of them."""
        for folder in self._top.values():
            _clear(folder)

    def _of(self, version: int) -> list[str]:
        return [controller for controller, h in self._found.items() if h.version == version]

    def _limit_memory(self, folder: Path, mib: int) -> None:
        limit = str(mib << 20)
        if self._found["memory"].version == 2:
            (folder / "memory.max").write_text(limit)
            with contextlib.suppress(OSError):  # a kernel without swap has no file for it
                (folder / "memory.swap.max").write_text("0")
            return
        (folder / "memory.limit_in_bytes").write_text(limit)
        with contextlib.suppress(OSError):
            (folder / "memory.memsw.limit_in_bytes").write_text(limit)


def find() -> dict[str, Hierarchy] | str:
    """Where each needed controller can be used by this process, or why not."""
    found: dict[str, Hierarchy] = {}
    own = _own_groups()
    for mount in _mounts():
        if mount.kind == "cgroup":
            for controller in set(NEEDED) & set(mount.options):
                # Below the agent's own group: whoever limits the agent limits its containers.
                found[controller] = Hierarchy(1, mount.folder_of(own.get(controller, "/")))
        elif mount.kind == "cgroup2":
            parent = mount.folder_of(own.get("", "/"))
            with contextlib.suppress(OSError):
                for controller in set(NEEDED) & set((parent / "cgroup.controllers").read_text().split()):
                    found.setdefault(controller, Hierarchy(2, parent))
    missing = [controller for controller in NEEDED if controller not in found]
    if missing:
        return (
            f"control groups have no {', '.join(missing)} controller here (mount cgroup2, or delegate it to the agent)"
        )
    try:
        _delegate({h.parent for h in found.values() if h.version == 2}, found)
    except OSError as error:
        return f"control groups cannot be used: {error}"
    return found


def _count(file: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in file.read_text().splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    return 0


def _delegate(parents: set[Path], found: dict[str, Hierarchy]) -> None:
    """In v2 a group with processes cannot have groups with limits: the agent moves into one of its own first."""
    for parent in parents:
        wanted = [controller for controller, h in found.items() if h.parent == parent]
        enabled = (parent / "cgroup.subtree_control").read_text().split()
        if set(wanted) <= set(enabled):
            continue
        if parent != parent.parent and (parent / "cgroup.type").exists():  # the root has no such file, nor that rule
            (parent / "squall-agent").mkdir(exist_ok=True)
            for pid in (parent / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    (parent / "squall-agent" / "cgroup.procs").write_text(pid)
        (parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted))


def _own_groups() -> dict[str, str]:
    """This process's group by controller; "" for v2."""
    groups = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


class Mount(NamedTuple):
    """A file system as this process sees it."""

    place: Path
    root: str
    """What of it is to be seen there: in a container of an engine, often its own group alone."""
    kind: str
    options: tuple[str, ...]

    def folder_of(self, group: str) -> Path:
        """Where a group of it is."""
        below = group.removeprefix(self.root) if f"{group}/".startswith(f"{self.root.rstrip('/')}/") else group
        return self.place / below.lstrip("/")


def mount_of(line: str) -> Mount:
    """Of a line of /proc/self/mountinfo."""
    about, _, rest = line.partition(" - ")
    _, _, _, root, place, *_ = about.split()
    kind, _, options = rest.split()
    return Mount(Path(place), root, kind, tuple(options.split(",")))


def _mounts() -> Iterator[Mount]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup" in line:
            yield mount_of(line)


def _clear(folder: Path) -> None:
    """Kill what is in it and in the groups below, and remove them."""
    if not folder.is_dir():
        return
    groups = [path for path in folder.iterdir() if path.is_dir()]
    for group in [*groups, folder]:
        with contextlib.suppress(OSError):
            for pid in map(int, (group / "cgroup.procs").read_text().split()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        _remove(group)


def _remove(folder: Path) -> None:
    until = time.monotonic() + REMOVE_S
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > until:
                return  # the next start of the agent tries again
            time.sleep(0.01)
        else:
            return
