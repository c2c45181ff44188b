"""A container whose code lives in a root of its own: its payload files, its limits of disk, and the volumes that it
writes to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from squall_gpu_agent.backend import End, Failed, FailureKind, FullDisk, InputRequest, NotBegun, OnBegin, OnItem, Output
from squall_gpu_agent.backends.runner_container import RunnerContainer
from squall_gpu_agent.backends.sandbox.wanted import SCRATCH

DISK_POLL_S = 1.0
DISK_RESERVE_BYTES = 512 << 20
INODE_RESERVE = 20_000
LARGE_CHANGES_BYTES = 64 << 20
"""Less is not what fills the disk."""
SMALLEST_BYTES = 4096
"""What an empty file counts: disks have an end of files, too."""
_DISK_FULL = "[Errno 28]"


class PayloadContainer(RunnerContainer):
    """One whose code finds payload files at `SCRATCH`, and what it writes in memory of bounded size."""

    _kills_told = 0

    @property
    def disk_limits(self) -> str:
        """In words, for who has reached one; "" = none."""
        raise NotImplementedError

    async def run(
        self, request: InputRequest, on_item: OnItem | None = None, on_begin: OnBegin | None = None
    ) -> End | NotBegun:
        """See `Container.run`."""
        if request.path is not None and request.path.parent == self.scratch:
            request = replace(request, path=Path(SCRATCH, request.path.name))
        end = await super().run(request, on_item, on_begin)
        if isinstance(end, Output | Failed) and (killed := self._killed_meanwhile()):
            self._link.say(f"warning: {killed}", request.call, request.index)
            if isinstance(end, Failed):
                message, traceback = f"{end.message} ({killed})", f"{end.traceback}\n({killed})\n"
                end = replace(end, message=message, traceback=traceback)
        if isinstance(end, Failed) and end.disk is not None and (limit_mib := self.disks().get(end.disk.place)):
            disk = end.disk._replace(limit_mib=limit_mib)
            return replace(end, kind=FailureKind.DISK_FULL, disk=disk, message=full_disk(disk, end.message))
        if isinstance(end, Failed) and _DISK_FULL in end.message and (limits := self.disk_limits):
            end = replace(end, message=f"{end.message} (limits of this container: {limits})")
        return end

    @property
    def disk_mib(self) -> int:
        """See `Container.disk_mib`."""
        return self.disks().get(SCRATCH, 0)

    def disks(self) -> Mapping[str, int]:
        """What of it is its own to write to: mount points as its code sees them, and MiB. Not its volumes and buckets,
        nor memory that is shared between processes."""
        raise NotImplementedError

    def oom_kills(self) -> tuple[int, int | None]:
        """How often the kernel has killed a process of it for want of memory, and its limit in MiB; None = the
        machine's memory."""
        return 0, None

    def _killed_meanwhile(self) -> str:
        """In words, since the last call ended; "" = nothing. Its runner was not among them: it has told the end."""
        kills, limit = self.oom_kills()
        new, self._kills_told = kills - self._kills_told, max(kills, self._kills_told)
        if new <= 0:
            return ""
        whose = f"the limit of this container is {limit} MiB" if limit else "the machine has no more"
        plural = "es that it had started were" if new > 1 else " that it had started was"
        return f"out of memory: {new} process{plural} killed by the kernel; {whose}, files in memory included"

    # --- what it writes to its volumes is on the machine's disk ---

    def volume_folders(self) -> Sequence[tuple[str, str]]:
        """Of each volume: the folder with what it changes there, and the mount, as this process finds it."""
        raise NotImplementedError

    def processes(self) -> Sequence[int]:
        """Everything that runs in it."""
        raise NotImplementedError

    def watch_disk(self) -> None:
        """End it when the disk is nearly full of what such containers have written to their volumes: it is shared."""
        places = self.volume_folders()
        if self._status_known or not places:
            return
        if not is_nearly_full(places[0][0]):
            self._loop.call_later(DISK_POLL_S, self.watch_disk)
            return
        weighed = self._loop.run_in_executor(None, self._written)
        weighed.add_done_callback(self._on_weighed)

    def _written(self) -> int:
        """Of files that it has removed and holds open too."""
        places = self.volume_folders()
        devices = {_device(place) for pair in places for place in pair}
        kept = sum(written_bytes(above) for above, _ in places)
        return kept + removed_bytes(self.processes(), devices - {0})

    def _on_weighed(self, weighed: asyncio.Future[int]) -> None:
        written = 0 if weighed.exception() else weighed.result()
        if written >= LARGE_CHANGES_BYTES:
            what = f"{written >> 20} MiB that it has written to its volumes take space there until it ends"
            self.kill(f"killed: the disk of its machine is nearly full, and {what}")
        else:
            self._loop.call_later(DISK_POLL_S, self.watch_disk)


def full_disk(disk: FullDisk, error: str) -> str:
    """In words, with the numbers."""
    used = min(max(disk.used_bytes, 0) >> 20, disk.limit_mib)
    if disk.files:
        what = f"is full: it holds {disk.files} files, which is the most for {disk.limit_mib} MiB"
    elif disk.still:
        what = f"is full: {used} of {disk.limit_mib} MiB are used"
    else:
        what = f"was full: {disk.limit_mib} MiB ({used} MiB since files were removed again)"
    return f"the disk of its container {what} ({error})"


def is_nearly_full(folder: str) -> bool:
    """Of the disk that a folder is on: bytes, or files where they have an end."""
    disk = os.statvfs(folder)
    few_files = disk.f_files > 0 and disk.f_favail < INODE_RESERVE
    return few_files or disk.f_bavail * disk.f_frsize < DISK_RESERVE_BYTES


def removed_bytes(processes: Sequence[int], devices: set[int]) -> int:
    """On disk, of files of these devices that have no name any more and that processes have open."""
    found: dict[tuple[int, int], int] = {}
    for process in processes:
        try:
            descriptors = os.listdir(f"/proc/{process}/fd")
        except OSError:
            continue  # it has ended
        for descriptor in descriptors:
            try:
                status = os.stat(f"/proc/{process}/fd/{descriptor}")
            except OSError:
                continue
            if status.st_nlink == 0 and status.st_dev in devices:
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def _device(folder: str) -> int:
    try:
        return os.stat(folder).st_dev
    except OSError:
        return 0


def written_bytes(folder: str) -> int:
    """On disk, of everything below a folder that a container writes to; links are not followed."""
    total, waiting = 0, [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += max(SMALLEST_BYTES, entry.stat(follow_symlinks=False).st_blocks * 512)
        except OSError:
            continue  # it is gone
    return total
