"""What gets its name is on disk as a whole before: after a power failure it is there, or it is not.

A rename alone does not do that: file systems may keep the new name and lose what was written shortly before. Blocks.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def flush(folder: Path) -> None:
    """Everything that was written to the file system of a folder is on disk. One call for any number of files: a layer
    may have ten thousands. Raises `OSError`, also when something could not be written."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(folder))
    finally:
        os.close(descriptor)


def publish(staged: Path, target: Path) -> None:
    """Let a folder that is finished have its name. Raises `OSError`."""
    flush(staged)
    staged.rename(target)
    _sync(target.parent)


def write(path: Path, text: str) -> None:
    """Let a file have this content, or the one before. Raises `OSError`."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
