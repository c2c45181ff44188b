"""Code bundles: users' code as extracted folders, by content. Owns what may come out of a zip, and where it lands.

Bundles come from users: no path may leave the folder, nothing but files and folders is made, sizes and counts are
bounded, and a folder appears whole or not at all (it is published by a rename).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from squall.errors import DataLossError, InvalidError
from squall.http_api.protocol import blob_ref
from squall.spec import CodeRef
from squall_service.blobs import Blobs
from squall_service.failpoints import failpoint_disk

COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
CHUNK_BYTES = 1 << 20
MOST_FOLDERS = 200
"""Of a path: whoever walks through a folder needs a frame of its stack for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may come out of one bundle."""

    files: int = 100_000
    total_bytes: int = 8 * 1024**3
    ratio: int = 200
    """Extracted over stored size; source code compresses by 3 to 10, a bomb by 1,000."""
    ratio_free_bytes: int = 64 * 1024**2
    """Below it the ratio does not matter."""


DEFAULT_LIMITS = Limits()


class BadBundle(InvalidError):
    """The code bundle holds something that is not a plain file or leads out of its folder."""

    code = "bad_bundle"
    fix = "Upload the code again with a current squall."


class Bundles:
    """Extracted bundles below one folder, each made once for any number of callers."""

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        self._folder = folder
        self._blobs = blobs
        self._locks: dict[str, asyncio.Lock] = {}

    async def ensure(self, code: CodeRef, workspace: str) -> Path:
        """The folder of the files of a bundle that a function of the workspace names. One for all who name it: gateways
        take no declaration whose bundle its workspace does not have."""
        target = self._folder / code.bundle_sha256
        async with self._locks.setdefault(code.bundle_sha256, asyncio.Lock()):
            if target.is_dir():
                return target
            archive = self._folder / f"{code.bundle_sha256}.zip"
            blobs = self._blobs.of(workspace)
            await blobs.fetch(blob_ref(code.bundle_sha256, code.bundle_bytes), archive)
            try:
                await asyncio.to_thread(extract, archive, target)
            finally:
                archive.unlink(missing_ok=True)
        return target


def extract(archive: Path, target: Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """Extract `archive` to `target`, whole or not at all. Raises `BadBundle`."""
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    part.mkdir(parents=True)
    try:
        failpoint_disk()
        with zipfile.ZipFile(archive) as bundle:
            members = bundle.infolist()
            _check_sizes(members, archive.stat().st_size, limits)
            for member in members:
                _extract_member(bundle, member, part)
        part.rename(target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataLossError(f"the code bundle is damaged: {error}") from error
    except OSError:
        if not target.is_dir():  # somebody else published it first: fine
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_sizes(members: list[zipfile.ZipInfo], stored_bytes: int, limits: Limits) -> None:
    total = sum(member.file_size for member in members)
    if len(members) > limits.files or total > limits.total_bytes:
        raise BadBundle(f"{len(members)} files of {total} bytes are more than a bundle may hold")
    if total > max(limits.ratio_free_bytes, limits.ratio * stored_bytes):
        raise BadBundle(f"{stored_bytes} bytes would become {total}")


def inner_path(name: str) -> PurePosixPath:
    """The path of a member below the bundle's folder. Raises `BadBundle` if it would not be."""
    path = PurePosixPath(name)
    if not name or "\\" in name or "\0" in name or path.is_absolute() or ".." in path.parts or not path.parts:
        raise BadBundle(f"{name!r} is not a path inside the bundle")
    if len(path.parts) > MOST_FOLDERS:
        raise BadBundle(f"{name[:200]}... lies in more than {MOST_FOLDERS} folders")
    return path


def _extract_member(bundle: zipfile.ZipFile, member: zipfile.ZipInfo, part: Path) -> None:
    path = part.joinpath(*inner_path(member.filename).parts)
    mode = member.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if member.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        return
    if member.compress_type not in COMPRESSIONS:
        raise BadBundle(f"{member.filename!r} is compressed in a way that bundles are not")
    if kind not in (0, stat.S_IFREG):
        raise BadBundle(f"{member.filename!r} is neither a file nor a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    # O_EXCL: a second member of the same name must not be written through anything that the first one made.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    permissions = 0o755 if mode & 0o111 else 0o644
    left = member.file_size
    with bundle.open(member) as source, os.fdopen(os.open(path, flags, permissions), "wb") as target:
        while chunk := source.read(CHUNK_BYTES):
            left -= len(chunk)
            if left < 0:
                raise BadBundle(f"{member.filename!r} is larger than it says")
            target.write(chunk)
