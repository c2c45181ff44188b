"""A volume as a plain folder of the builder: filled from its blocks, and what a step changed in it found and stored."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squall.http_api.protocol import blob_ref
from squall.http_api.storage import BLOCK_BYTES, MAX_MTIME_S, VolumeFile
from squall.http_api.volume_links import inside
from squall.spec import VolumeMount, to_wire
from squall_service.blobs import Blobs
from squall_service.volume_lists import Listed

RESERVE_BYTES = 256 << 20
"""Free space that must be left after volumes were brought here."""
FILES_AT_ONCE = 32

Stamp = tuple[int, int, int, int, int]
"""What an inode says; a file that was not written to has the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """One volume of a step."""

    mount: VolumeMount
    place: Path
    version: int
    known: Mapping[str, VolumeFile]
    """As it was brought, by path below the mount."""
    stamps: Mapping[str, Stamp]

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.mount.name or self.mount.volume} at {self.mount.path}"

    def told(self) -> dict[str, Any]:
        """What the step's program is told."""
        mount = self.mount
        said = {"id": mount.volume, "name": mount.name, "environment": mount.environment}
        return {**said, "version": self.version}

    def remote(self, path: str) -> str:
        """The path in the volume."""
        return f"{self.mount.sub_path}/{path}" if self.mount.sub_path else path


def free_bytes(place: Path) -> int:
    """What may be brought."""
    return shutil.disk_usage(place).free - RESERVE_BYTES


def below(listed: Listed, sub_path: str) -> Listed:
    """What of a list is in a folder, with paths from there."""
    if not sub_path:
        return listed
    start = f"{sub_path}/"
    files = tuple(
        dataclasses.replace(file, path=file.path[len(start) :]) for file in listed.files if file.path.startswith(start)
    )
    return Listed(
        files=files,
        folders=tuple(folder[len(start) :] for folder in listed.folders if folder.startswith(start)),
    )


async def fill(place: Path, listed: Listed, blobs: Blobs) -> dict[str, Stamp]:
    """Make the files; nobody else sees the folder, so no path of it can have become a link meanwhile."""
    for folder in listed.folders:
        (place / folder).mkdir(mode=0o755)
    slots = asyncio.Semaphore(FILES_AT_ONCE)

    async def one(file: VolumeFile) -> None:
        async with slots:
            await _bring(place / file.path, file, blobs)

    try:
        async with asyncio.TaskGroup() as group:
            for file in listed.files:
                group.create_task(one(file))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return {file.path: _stamp(os.lstat(place / file.path)) for file in listed.files}


async def _bring(target: Path, file: VolumeFile, blobs: Blobs) -> None:
    await asyncio.to_thread(_begin, target, file)
    for number, block in enumerate(file.blocks):
        begin = number * BLOCK_BYTES
        await blobs.fetch_part(blob_ref(block, min(BLOCK_BYTES, file.size - begin)), target, begin)
    if not file.link:
        await asyncio.to_thread(_finish, target, file)


def _begin(target: Path, file: VolumeFile) -> None:
    if file.link:
        target.symlink_to(file.link)
    else:
        target.touch(mode=0o600, exist_ok=False)


def _finish(target: Path, file: VolumeFile) -> None:
    target.chmod(file.mode & 0o777)
    os.utime(target, (file.mtime, file.mtime))


async def changes(folder: Folder, store: Blobs) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What to tell so that the volume is as the folder, with its blocks stored; and what cannot be kept, and why.

    What is new comes first, so that a file that was renamed is always there under one of its names."""
    found, left_out = await asyncio.to_thread(_look, folder)
    wanted: list[dict[str, Any]] = []
    for path, file in found.items():
        before = folder.known.get(path)
        if not file.link:
            if before is not None and folder.stamps[path] == _stamp(os.lstat(folder.place / path)):
                continue
            file = dataclasses.replace(file, blocks=await _stored(folder.place / path, store))
        if before is None or _said(file) != _said(before):
            remote = folder.remote(path)
            wanted.append({"what": "write", "path": remote, "file": to_wire(dataclasses.replace(file, path=remote))})
    gone = [path for path in folder.known if path not in found and path not in left_out]
    return [*wanted, *({"what": "unlink", "path": folder.remote(path)} for path in gone)], left_out


def _said(file: VolumeFile) -> tuple[Any, ...]:
    return file.link or (file.size, file.mode & 0o777, file.mtime, tuple(file.blocks)), bool(file.link)


async def _stored(path: Path, store: Blobs) -> tuple[str, ...]:
    blocks: list[str] = []
    descriptor = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        while piece := await asyncio.to_thread(os.pread, descriptor, BLOCK_BYTES, len(blocks) * BLOCK_BYTES):
            blocks.append((await store.put_bytes(piece))[0])
    finally:
        os.close(descriptor)
    return tuple(blocks)


def _look(folder: Folder) -> tuple[dict[str, VolumeFile], dict[str, str]]:
    found: dict[str, VolumeFile] = {}
    left_out: dict[str, str] = {}
    for entry in _entries(folder.place):
        path = os.path.relpath(entry.path, folder.place)
        status = entry.stat(follow_symlinks=False)
        mtime = min(max(status.st_mtime, -MAX_MTIME_S), MAX_MTIME_S)
        if not _is_text(path):
            left_out[path.encode(errors="backslashreplace").decode()] = "is a name that is not UTF-8"
        elif stat.S_ISREG(status.st_mode):
            found[path] = VolumeFile(path, status.st_size, mtime, stat.S_IMODE(status.st_mode) & 0o777, ())
        elif stat.S_ISLNK(status.st_mode):
            said = os.readlink(entry.path)
            target = inside(path, said, folder.mount.path) if _is_text(said) else None
            if target is None:
                left_out[path] = "is a link that leads out of the volume"
            else:
                found[path] = VolumeFile(path, 0, mtime, 0o777, (), target)
        else:
            left_out[path] = "is no file"
    return found, left_out


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All that is no folder, however deep."""
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    yield entry


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, stat.S_IMODE(status.st_mode)
