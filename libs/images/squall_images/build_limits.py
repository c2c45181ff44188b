"""What one build step may take of the builder's machine: memory, processes, disk. Owns the step's control group and the
watch over what it writes; tells which limit ended it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from squall.errors import ImageBuildError
from squall_images.locks import to_its_end
from squall_images.trees import entries
from squall_isolation import cgroups
from squall_isolation.cgroups import Group, Groups, Hierarchy

LOOK_S = 0.5
LOOKS_SHARE = 10
"""A look at a large tree takes long: no more than a tenth of the time goes into it."""
ENTRY_BYTES = 4096
"""Least that a name counts, so that a disk's inodes are limited, too."""
STALE_S = 60.0
PREFIX = "squall-build-"
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """Most that one step may have; 0 = no limit."""

    memory_mib: int = 0
    processes: int = 0
    """Threads included."""
    disk_mib: int = 0
    """What it writes to the image."""

    def why(self, group: Group | None) -> str:
        """Which limit of its control group a failed step had reached; empty if none."""
        if group is None:
            return ""
        if self.memory_mib and group.oom_kills():
            return f"it needed more memory than the {self.memory_mib} MiB of a step (SQUALL_BUILDER_STEP_MEMORY_MIB)"
        if self.processes and group.refused_processes():
            return f"it wanted more than the {self.processes} processes of a step (SQUALL_BUILDER_STEP_PROCESSES)"
        return ""

    @property
    def disk_words(self) -> str:
        """What is said of a step that wrote too much."""
        return f"it wrote more than the {self.disk_mib} MiB of a step (SQUALL_BUILDER_STEP_DISK_MIB)"


@contextlib.asynccontextmanager
async def grouped(limits: StepLimits) -> AsyncIterator[Group | None]:
    """A control group for one step; gone afterwards with all that runs in it.

    Raises `ImageBuildError` where there are no control groups."""
    if not limits.memory_mib and not limits.processes:
        yield None
        return
    found = await asyncio.to_thread(_hierarchies)
    if isinstance(found, str):
        raise ImageBuildError(
            f"build steps cannot be limited on this machine: {found}",
            fix="Give the builder control groups; or, where nobody builds whom you do not trust, set "
            "SQUALL_BUILDER_STEP_MEMORY_MIB=0 and SQUALL_BUILDER_STEP_PROCESSES=0.",
        )
    groups = Groups(f"{PREFIX}{os.getpid()}-{next(_numbers)}", found)
    each = cgroups.Limits(memory_mib=limits.memory_mib or None, processes=limits.processes or None, cpu=1.0)
    try:
        await asyncio.to_thread(groups.open, each.memory_mib)
        yield await asyncio.to_thread(groups.make, "step", each)
    finally:
        await to_its_end(groups.close)


@cache
def _hierarchies() -> dict[str, Hierarchy] | str:
    found = cgroups.find()
    if not isinstance(found, str):
        for parent in {hierarchy.parent for hierarchy in found.values()}:
            _remove_stale(parent)
    return found


def _remove_stale(parent: Path) -> None:
    """Empty groups of builders that were killed; the kernel removes none that has a process."""
    for top in parent.glob(f"{PREFIX}*"):
        pid = top.name.removeprefix(PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            young = time.time() - top.stat().st_mtime < STALE_S  # noqa: TID251  # against the time of a file
            if not young and not os.path.exists(f"/proc/{pid}"):
                for group in (*top.glob("*/"), top):
                    group.rmdir()


# --- disk ---


class Disk:
    """What a step writes: to its layer, and to folders that outlast it (archives of apt)."""

    def __init__(self, limit_mib: int, *folders: Path) -> None:
        self.limit_mib = limit_mib
        self._folders = folders if limit_mib else ()
        self._limit = (limit_mib << 20) + sum(map(_used, self._folders))

    async def watch(self, exceeded: Callable[[], None]) -> None:
        """Call `exceeded` once it is more than the limit."""
        clock = asyncio.get_running_loop().time
        while self._folders:
            began = clock()
            if await asyncio.to_thread(self.exceeded):
                exceeded()
                return
            await asyncio.sleep(max(LOOK_S, LOOKS_SHARE * (clock() - began)))

    def exceeded(self) -> bool:
        """Whether the limit is reached now; a single file is cut there, so it never gets beyond. Blocks."""
        try:
            return bool(self._folders) and sum(map(_used, self._folders)) >= self._limit
        except ImageBuildError:
            return True


def _used(folder: Path) -> int:
    used = 0
    for path in entries(folder):
        with contextlib.suppress(OSError):  # it is gone already
            used += max(os.lstat(path).st_blocks * 512, ENTRY_BYTES)
    return used
