"""Versions of volumes as folders on this machine, made of hard links; those that are mounted stay.

Owns the folders `trees` and `files`. A tree appears whole or not at all, and never changes.
"""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from squall.errors import DataLossError
from squall.http_api.protocol import parse_blob_ref
from squall.http_api.storage import VolumeFile
from squall_contracts.volumes import MAX_LIST_BYTES
from squall_gpu_agent.volumes.files import Files, drop_parts
from squall_service.blobs import Blobs
from squall_service.telemetry import log
from squall_service.volume_lists import Listed, parse

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
FILES_AT_ONCE = 64
"""Begun at once."""
BLOCKS_AT_ONCE = 4
"""On their way. Payloads of calls have a line of their own: they would wait behind all blocks of a large volume."""
SHARE_OF_DISK = 5
"""Without a limit of the operator's, the cache may fill a fifth of the disk."""


class Trees:
    """One per agent."""

    def __init__(self, folder: Path, blobs: Blobs, limit_mib: int) -> None:
        self._folder = folder
        self.blobs = blobs.apart(BLOCKS_AT_ONCE)
        self._limit_bytes = limit_mib << 20
        self._files = Files(folder / "files")
        self._making: dict[str, asyncio.Lock] = {}
        self._used: Counter[str] = Counter()
        """Mounts of each tree."""
        self._newest: dict[str, str] = {}
        """The tree of each volume that was asked for last: the next container probably wants it. The volume that
        was not asked for for the longest time is the first."""
        self._is_open = False
        self._opening, self._tidying = asyncio.Lock(), asyncio.Lock()

    @property
    def nothing(self) -> Path:
        """An empty folder."""
        return self._folder / "nothing"

    async def use(self, volume: str, manifest: str, blobs: Blobs | None = None) -> Path:
        """The folder with that version's files, out of `blobs`; it stays until `release`. Raises `SquallError`."""
        async with self._opening:
            await asyncio.to_thread(self._open)
        sha256 = parse_blob_ref(manifest)[0] if manifest else "empty"
        name = f"{volume}/{sha256}"
        async with self._tidying:
            self._used[name] += 1
        try:
            async with self._making.setdefault(name, asyncio.Lock()):
                tree = self._folder / "trees" / name
                if not tree.is_dir():
                    await self._make(tree, manifest, blobs or self.blobs)
        except BaseException:
            self._used[name] -= 1
            raise
        self._newest.pop(volume, None)
        self._newest[volume] = name
        return tree

    def release(self, tree: Path) -> None:
        """One mount of it less."""
        self._used[str(tree.relative_to(self._folder / "trees"))] -= 1

    async def tidy(self) -> None:
        """Remove versions that nobody uses and nobody will ask for, and files above the limit."""
        async with self._tidying:
            self._used = +self._used
            try:
                await asyncio.to_thread(self._remove_old, set(self._used), list(self._newest.values()))
            except OSError as error:
                log.warning("volumes_not_tidied", reason=str(error))
            self._making = {name: lock for name, lock in self._making.items() if lock.locked() or name in self._used}

    def _open(self) -> None:
        """Files of an earlier life are good if the machine has run since: nothing here is synced to disk."""
        if self._is_open:
            return
        boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else secrets.token_hex(8)
        mark = self._folder / "boot"
        if not mark.exists() or mark.read_text() != boot:
            remove(self._folder / "files")
        drop_parts(self._folder / "files")
        remove(self._folder / "trees")
        for name in ("files", "trees", "nothing"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        mark.write_text(boot)
        self._is_open = True

    async def _make(self, tree: Path, manifest: str, blobs: Blobs) -> None:
        part = tree.with_name(f".{secrets.token_hex(8)}")
        await asyncio.to_thread(part.mkdir, parents=True)
        try:
            if manifest:
                listed = await self._listed(part.with_name(part.name + ".list"), manifest, blobs)
                await self._fill(part, listed, blobs)
            await asyncio.to_thread(part.rename, tree)
        finally:
            await asyncio.to_thread(remove, part)

    async def _listed(self, file: Path, manifest: str, blobs: Blobs) -> Listed:
        if parse_blob_ref(manifest)[1] > MAX_LIST_BYTES:
            raise DataLossError("a volume's list of files is larger than any volume's")
        try:
            await blobs.fetch(manifest, file)
            return await asyncio.to_thread(lambda: parse(file.read_bytes()))
        finally:
            await asyncio.to_thread(file.unlink, missing_ok=True)

    async def _fill(self, part: Path, listed: Listed, blobs: Blobs) -> None:
        files = [file for file in listed.files if not file.link]
        with self._files.held(files):
            missing = await asyncio.to_thread(lambda: [file for file in files if not self._files.place(file).exists()])
            if missing:
                await self._make_room(sum(file.size for file in missing))
            for first in range(0, len(missing), FILES_AT_ONCE):
                await self._bring(missing[first : first + FILES_AT_ONCE], blobs)
            await asyncio.to_thread(self._link, part, listed)

    async def _make_room(self, wanted: int) -> None:
        """Raises `StorageFullError` if there is too little even without all that is not mounted."""
        if not self._files.has_room(wanted):
            async with self._tidying:
                used, newest = set(+self._used), list(self._newest.values())
                await asyncio.to_thread(self._shrink, used, newest, lambda _: self._files.has_room(wanted))
            self._files.check_room(wanted)

    async def _bring(self, files: list[VolumeFile], blobs: Blobs) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for file in files:
                    group.create_task(self._files.bring(file, blobs))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    def _link(self, part: Path, listed: Listed) -> None:
        """Into a folder that nobody else sees: no path of it can have become a link meanwhile."""
        for folder in listed.folders:
            (part / folder).mkdir(mode=0o755)
        for file in listed.files:
            if file.link:
                os.symlink(file.link, part / file.path)
            else:
                os.link(self._files.place(file), part / file.path)

    def _limit(self) -> int:
        return self._limit_bytes or shutil.disk_usage(self._folder).total // SHARE_OF_DISK

    def _remove_old(self, used: set[str], newest: list[str]) -> None:
        if not self._is_open:
            return
        kept = {*used, *newest}
        for volume in (self._folder / "trees").iterdir():
            for tree in volume.iterdir():
                if f"{volume.name}/{tree.name}" not in kept and not tree.name.startswith("."):
                    remove(tree)
        limit = self._limit()
        self._shrink(used, newest, lambda left: left <= limit)

    def _shrink(self, used: set[str], newest: list[str], is_enough: Callable[[int], bool]) -> None:
        """Remove what is not mounted, versions too, until it is enough."""

        @functools.cache
        def mounted() -> set[int]:
            return {inode for name in used for inode in inodes(self._folder / "trees" / name)}

        left = self._files.drop_unused(mounted, is_enough)
        for name in newest:
            tree = self._folder / "trees" / name
            if not is_enough(left) and name not in used and tree.exists():
                remove(tree)
                left = self._files.drop_unused(mounted, is_enough)


def inodes(folder: Path) -> Iterator[int]:
    """Of the files in it, however deep; of nothing if it is not there yet."""
    waiting = [str(folder)] if folder.is_dir() else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    yield entry.inode()


def remove(folder: Path) -> None:
    """With all that is in it, however deep; links are removed, never followed."""
    if os.path.lexists(folder):
        # Not shutil.rmtree: folders of users can be deeper than Python's stack.
        subprocess.run(["rm", "-rf", "--", str(folder)], stderr=subprocess.DEVNULL, check=False)
