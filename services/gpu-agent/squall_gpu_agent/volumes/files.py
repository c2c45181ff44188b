"""Files of volumes on this machine, each once: versions are folders of hard links to them.

Owns the folder `files` and what is removed from it. Nothing but the agent writes there; containers see its files
through overlays that copy before they write.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from squall.errors import StorageFullError
from squall.http_api.protocol import blob_ref
from squall.http_api.storage import BLOCK_BYTES, VolumeFile
from squall_service.blobs import Blobs
from squall_service.volume_lists import file_key

RESERVE_BYTES = 256 << 20
"""Free space that must be left after volumes were brought here."""


class Files:
    """The cache."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._coming: dict[str, asyncio.Lock] = {}
        self._held: Counter[str] = Counter()
        """Those that a version in the making needs."""
        self._removing = threading.Lock()

    def place(self, file: VolumeFile) -> Path:
        """Where it is, once it is here."""
        key = file_key(file)
        return self._folder / key[:2] / key

    @contextlib.contextmanager
    def held(self, files: list[VolumeFile]) -> Iterator[None]:
        """None of them is removed within the block."""
        names = [self.place(file).name for file in files]
        with self._removing:
            self._held.update(names)
        try:
            yield
        finally:
            with self._removing:
                self._held.subtract(names)
                self._held = +self._held

    def has_room(self, wanted: int) -> bool:
        """Whether so many bytes fit on the disk."""
        return wanted + RESERVE_BYTES <= shutil.disk_usage(self._folder).free

    def check_room(self, wanted: int) -> None:
        """Raises `StorageFullError` if so many bytes do not fit on the disk."""
        free = shutil.disk_usage(self._folder).free
        if wanted + RESERVE_BYTES > free:
            raise StorageFullError(
                f"{wanted >> 20} MiB of a volume are not on this machine yet, and its disk has {free >> 20} MiB free",
                fix="Free disk space under the agent's data folder, or run the function on a machine with more.",
            )

    async def bring(self, file: VolumeFile, blobs: Blobs) -> None:
        """Have it here, whole and verified; many may ask at once."""
        place = self.place(file)
        async with self._coming.setdefault(place.name, asyncio.Lock()):
            if not place.exists():
                await self._fetch(file, place, blobs)
        self._coming.pop(place.name, None)

    async def _fetch(self, file: VolumeFile, place: Path, blobs: Blobs) -> None:
        part = place.with_name(f".{secrets.token_hex(8)}")
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.touch(mode=0o600, exist_ok=False)
            try:
                async with asyncio.TaskGroup() as group:
                    for number, block in enumerate(file.blocks):
                        begin = number * BLOCK_BYTES
                        ref = blob_ref(block, min(BLOCK_BYTES, file.size - begin))
                        group.create_task(blobs.fetch_part(ref, part, begin))
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from failures
            part.chmod(file.mode & 0o777)
            os.utime(part, (file.mtime, file.mtime))
            part.rename(place)
        finally:
            part.unlink(missing_ok=True)

    def drop_unused(self, mounted: Callable[[], set[int]], is_enough: Callable[[int], bool]) -> int:
        """Remove files that no version here needs, the longest unused first, until it is enough for as many bytes as
        are left besides those that are mounted (inodes); how many are left."""
        found = [(each, each.stat()) for each in self._all()]
        left = sum(status.st_size for _, status in found)
        if not is_enough(left):
            left -= sum(status.st_size for _, status in found if status.st_ino in mounted())
        for each, status in sorted((f for f in found if f[1].st_nlink == 1), key=lambda f: f[1].st_atime):
            if is_enough(left):
                break
            with self._removing:
                if each.name in self._held:
                    continue
                each.unlink(missing_ok=True)
            left -= status.st_size
        return left

    def _all(self) -> list[Path]:
        return [each for each in self._folder.glob("??/*") if not each.name.startswith(".")]


def drop_parts(folder: Path) -> None:
    """Remove what an agent that was killed had not brought in full."""
    for each in folder.glob("??/.*"):
        each.unlink(missing_ok=True)
