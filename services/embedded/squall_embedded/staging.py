"""Staging in memory: where one nats-server keeps atomic batches until they are whole.

The server writes each batch into files of its own (four of them with fsync) before it stores the records, also with
fsync, and acknowledges; docs/decisions/0024 says why the first may be lost with the machine. It has no setting for
their place, so the folder `batches` of a stream becomes a link to one in memory. The server removes the link when it
starts; it is made again as soon as the server listens. Owns that folder in memory; changes nothing else in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from squall_embedded.state import SCRATCH_PREFIX
from squall_service.telemetry import log

MEMORY = Path("/dev/shm")
MIN_FREE_BYTES = 256 << 20
"""A batch has 4 MiB at most, and each writer has one for each stream under way. A batch that does not fit is refused,
and its records are written one by one."""
POLL_S = 0.01
TRIES = 500
LINK = "staging"
_STREAMS = Path("jetstream", "$G", "streams")


class Staging:
    """The staged batches of one server."""

    def __init__(self, store: Path, streams: Iterable[str], memory: Path = MEMORY) -> None:
        """`store`: the server's folder. `streams`: those that take atomic batches and lie on this server alone; what is
        replicated is staged in the server's memory anyway."""
        self._streams = {name: store / _STREAMS / name for name in streams}
        self._link = store / LINK
        self._memory = memory
        self._folder: Path | None = None

    @property
    def in_memory(self) -> bool:
        """Whether batches are cheap here."""
        return self._folder is not None

    def open(self) -> None:
        """Makes the folder in memory, if this machine has room there; what an earlier life left in it is kept: a server
        that was killed in the middle of a batch completes it from there."""
        if not self._streams:
            return
        with contextlib.suppress(OSError):
            if self._left_over():
                self._folder = self._link.readlink()
            elif _is_memory(self._memory) and shutil.disk_usage(self._memory).free >= MIN_FREE_BYTES:
                self._link.unlink(missing_ok=True)
                folder = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=self._memory))
                self._link.symlink_to(folder)
                self._folder = folder

    def _left_over(self) -> bool:
        if not self._link.is_symlink():
            return False
        folder = self._link.readlink()
        if folder.parent != self._memory or not folder.name.startswith(SCRATCH_PREFIX):
            return False
        return folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.getuid()

    async def link(self) -> None:
        """Every stream that is there stages in memory from now on. Call it when the server listens (it has completed
        what it found) and when streams were made. A folder in use is tried again: it is empty between two batches."""
        if self._folder is None:
            return
        left = [name for name, folder in self._streams.items() if folder.is_dir()]
        for _ in range(TRIES):
            left = [name for name in left if not self._linked(name, self._folder)]
            if not left:
                return
            await asyncio.sleep(POLL_S)
        log.warning("batches_staged_on_disk", streams=left)

    def _linked(self, name: str, memory: Path) -> bool:
        place, target = self._streams[name] / "batches", memory / name
        target.mkdir(mode=0o700, exist_ok=True)
        if place.is_symlink() and place.readlink() == target:
            return True
        try:
            if place.is_symlink():
                place.unlink()
            elif place.exists():
                place.rmdir()
            place.symlink_to(target)
        except OSError:
            return False  # a batch is in there, or one came in between
        return True

    def close(self) -> None:
        """Removes the folder in memory; the server has ended."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._link.unlink(missing_ok=True)
            self._folder = None


def _is_memory(folder: Path) -> bool:
    """Whether a tmpfs is mounted there."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return any(mount.split()[1:3] == [str(folder), "tmpfs"] for mount in mounts)
