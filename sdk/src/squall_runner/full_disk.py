"""A full disk: which file system an OSError is about, and how full that is. Imported only when there is one."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Optional

FULL_BYTES = 4 << 20
"""What is left of a disk on which nothing fits: file systems keep some blocks back."""
_FILES = ("io", "_io", "tempfile")


def about(error: OSError, scratch: str) -> Optional[dict[str, Any]]:
    """The mount point, and how much of it is used. None when no file system that could be meant is full: then the
    kernel had another reason (a limit of watches or semaphores, a file that was to be larger than the disk)."""
    try:
        return _about(error, scratch)
    except Exception:  # noqa: BLE001  # the error itself is told in any case
        return None


def _about(error: OSError, scratch: str) -> Optional[dict[str, Any]]:
    names = _named(error) or _open_files(error.__traceback__)
    for name in names:
        told = _told(mount_point(name))
        # What was removed while the error was on its way up is why the disk has room again.
        if told["full"] or not os.path.lexists(name):
            return told
    if names:
        return None
    for folder in (".", "/", "/tmp", "/var/tmp", os.path.expanduser("~"), scratch):
        if os.path.isdir(folder):
            told = _told(mount_point(os.path.join(folder, "any")))
            if told["full"]:
                return told
    return None


def _told(place: str) -> dict[str, Any]:
    disk = os.statvfs(place)
    no_files = disk.f_files > 0 and disk.f_favail == 0
    return {
        "place": place,
        "used": (disk.f_blocks - disk.f_bavail) * disk.f_frsize,
        "files": disk.f_files - disk.f_favail if no_files else 0,
        "full": no_files or disk.f_bavail * disk.f_frsize < FULL_BYTES,
    }


def mount_point(path: str) -> str:
    """Of the file system in which a file is, was, or would be."""
    folder = os.path.dirname(os.path.realpath(path))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    device = os.stat(folder).st_dev
    while folder != "/" and os.stat(os.path.dirname(folder)).st_dev == device:
        folder = os.path.dirname(folder)
    return folder


def _named(error: OSError) -> list[str]:
    names = [name for name in (error.filename, error.filename2) if isinstance(name, (str, bytes, os.PathLike))]
    return [os.fsdecode(name) for name in names]


def _open_files(traceback: Optional[TracebackType]) -> list[str]:
    """Of the innermost function that has files in its variables: an error of `write` names none."""
    frames = []
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    for frame in reversed(frames):
        names = [_name_of(value) for value in frame.f_locals.values()]
        found = [name for name in names if name]
        if found:
            return found
    return []


def _name_of(value: object) -> str:
    """Of a file of the standard library that can be written to: nothing of users' classes is called here."""
    if type(value).__module__ not in _FILES or getattr(value, "mode", "") in ("r", "rb"):
        return ""
    name = getattr(value, "name", "")
    return os.fsdecode(name) if isinstance(name, (str, bytes)) else ""
