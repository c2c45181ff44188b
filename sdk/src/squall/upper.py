"""The upper layer of an overlay mount: what was changed in it since it was mounted. Reads only."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

STAGE = ".squall-reload"
"""A folder in which newer files wait before they are moved to their places."""
_OPAQUE = ("user.overlay.opaque", "trusted.overlay.opaque")


class Stamp(NamedTuple):
    """What changes whenever a file does."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int


class Changed(NamedTuple):
    """Paths below the mount."""

    files: dict[str, Stamp]
    links: dict[str, str]
    folders: set[str]
    """Those of the layer: what was there before shows through, but for what is in `opaque`."""
    opaque: set[str]
    gone: set[str]
    """Removed, with all that was below."""
    strange: dict[str, str]
    """What no volume can keep, and why."""

    def hides(self, path: str) -> bool:
        """Whether a file that was there before is not to be seen any more."""
        if path in self.gone or path in self.folders:
            return True
        for above in folders_of(path):
            if above in self.gone or above in self.opaque or above in self.files or above in self.links:
                return True
            if above in self.strange:
                return True
        return path in self.strange


def folders_of(path: str) -> Iterator[str]:
    """Those that it lies in, the nearest first."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def look(upper: str) -> Changed:
    """Everything in the layer. What vanishes meanwhile is left out."""
    found = Changed({}, {}, set(), set(), set(), {})
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            entries = os.scandir(os.path.join(upper, below))
        except OSError as error:
            if below and not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                found.strange[below] = f"cannot be read: {error.strerror}"
            elif not below:
                raise
            continue
        with entries:
            for entry in entries:
                path = f"{below}/{entry.name}" if below else entry.name
                if path == STAGE:
                    continue
                if not _is_text(entry.name):
                    found.strange[_shown(path)] = "has a name that is not UTF-8"
                    continue
                try:
                    _sort(found, path, entry)
                except FileNotFoundError:
                    continue
                if path in found.folders:
                    waiting.append(path)
    return found


def _sort(found: Changed, path: str, entry: os.DirEntry[str]) -> None:
    status = entry.stat(follow_symlinks=False)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        found.folders.add(path)
        if _is_opaque(entry.path):
            found.opaque.add(path)
    elif kind == stat.S_IFREG:
        found.files[path] = stamp(status)
    elif kind == stat.S_IFLNK:
        target = os.readlink(entry.path)
        if _is_text(target):
            found.links[path] = target
        else:
            found.strange[path] = f"is a link to {_shown(target)}, a name that is not UTF-8"
    elif kind == stat.S_IFCHR and status.st_rdev == 0:
        found.gone.add(path)
    else:
        found.strange[path] = f"is {_KINDS.get(kind, 'a special file')}"


_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a device", stat.S_IFCHR: "a device"}


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def stamp(status: os.stat_result) -> Stamp:
    """Of a file as it is now."""
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, stat.S_IMODE(status.st_mode))


def _is_opaque(folder: str) -> bool:
    for name in _OPAQUE:
        try:
            if os.getxattr(folder, name, follow_symlinks=False) == b"y":
                return True
        except OSError:
            continue  # it has none, or this process may not see it
    return False
