"""What builders keep to be faster: packages of uv, byte-code, lists and archives of apt. No image needs any of it.

Owns how much of it stays. Whoever uses a cache holds its lock shared or alone; what is held stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

UV, BYTECODE, APT = "uv-cache", "bytecode", "apt"


@contextlib.contextmanager
def used(home: Path, name: str) -> Iterator[None]:
    """As long as the block runs, the cache stays; any number of processes may use it."""
    path = _lock(home, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def sweep(home: Path, limit_bytes: int) -> int:
    """Remove caches, those used longest ago first, until the rest fits; how many bytes that freed. Blocks.

    uv's cache and that of byte-code go as a whole: their parts refer to each other. Files that layers share with them
    take no room of their own."""
    found = sorted((_used_at(path), path, _bytes(path)) for path in _parts(home))
    total, freed = sum(size for _, _, size in found), 0
    for _, path, size in found:
        if total - freed <= limit_bytes:
            break
        if _removed(home, path):
            freed += size
    return freed


def _parts(home: Path) -> Iterator[Path]:
    for name in (UV, BYTECODE):
        if (home / name).is_dir():
            yield home / name
    if (home / APT).is_dir():
        yield from (path for path in (home / APT).iterdir() if path.is_dir())


def _lock(home: Path, name: str) -> Path:
    return home / "locks" / name


def _used_at(path: Path) -> float:
    mark = path / "updated" if path.parent.name == APT else path
    try:
        return mark.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _bytes(folder: Path) -> int:
    size = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(f"{here}/{name}")
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
                    size += found.st_blocks * 512
    return size


def _removed(home: Path, path: Path) -> bool:
    name = f"apt-{path.name}" if path.parent.name == APT else path.name
    with _lock(home, name).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        doomed = home / "staging" / f"doomed-{name}-{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
    return True
