"""The list of files of a volume's version, checked: it was written by users' programs. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from squall.errors import DataLossError
from squall.http_api.storage import BLOCK_BYTES, MAX_MTIME_S, VolumeFile
from squall.spec import from_wire, to_wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What a version consists of."""

    files: tuple[VolumeFile, ...]
    folders: tuple[str, ...]
    """Those that the files lie in, each after the ones above it."""


NOTHING = Listed(files=(), folders=())


def parse(body: bytes) -> Listed:
    """Raises `DataLossError` unless every file lies in the volume, and none in another file or behind a link."""
    try:
        files = tuple(from_wire(VolumeFile, each) for each in json.loads(body)["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataLossError(f"a volume's list of files cannot be read: {error}") from error
    paths = {file.path for file in files}
    folders: dict[str, None] = {}
    for file in files:
        parts = file.path.split("/")
        if not all(parts) or not {".", ".."}.isdisjoint(parts) or "\0" in file.path or "\0" in file.link:
            raise DataLossError(f"a volume's list of files has the path {file.path[:200]!r}")
        if not _is_text(file.path + file.link) or not -MAX_MTIME_S <= file.mtime <= MAX_MTIME_S:
            raise DataLossError(f"a volume's list of files has {file.path[:200]!r}, of which no file can be made")
        if not file.link and len(file.blocks) != -(-file.size // BLOCK_BYTES):
            raise DataLossError(f"a volume's list of files has {file.path[:200]!r} with another size than its blocks")
        for depth in range(1, len(parts)):
            folders["/".join(parts[:depth])] = None
    inside = next((folder for folder in folders if folder in paths), None)
    if inside is not None or len(paths) < len(files):
        raise DataLossError(f"a volume's list of files has {inside or 'a path'!r} twice")
    return Listed(files=files, folders=tuple(folders))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def file_key(file: VolumeFile) -> str:
    """The same for files that may be one file on this machine: content, and what an inode says of it."""
    said = {"blocks": to_wire(file.blocks), "size": file.size, "mtime": file.mtime, "mode": file.mode & 0o777}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
