"""Which files of a folder are open in this container. Reads /proc; where there is none, nothing is known to be open."""

from __future__ import annotations

import os
from collections.abc import Iterator


def under(folder: str) -> Iterator[tuple[str, bool]]:
    """Paths that processes of this mount namespace have open there or work in, and whether to write to them."""
    here = _namespace("self")
    for name in os.listdir("/proc") if here else ():
        if name.isdigit() and _namespace(name) == here:
            yield from _of(name, folder)


def _of(process: str, folder: str) -> Iterator[tuple[str, bool]]:
    try:
        descriptors = os.listdir(f"/proc/{process}/fd")
        where = os.readlink(f"/proc/{process}/cwd")
    except OSError:
        return  # it has ended
    if where == folder or where.startswith(folder + "/"):
        yield where, False
    for descriptor in descriptors:
        try:
            path = os.readlink(f"/proc/{process}/fd/{descriptor}")
            if path == folder or path.startswith(folder + "/"):
                yield path, _writes(process, descriptor)
        except OSError:
            continue  # closed meanwhile


def _writes(process: str, descriptor: str) -> bool:
    with open(f"/proc/{process}/fdinfo/{descriptor}") as file:
        for line in file:
            if line.startswith("flags:"):
                return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return False


def _namespace(process: str) -> str:
    try:
        return os.readlink(f"/proc/{process}/ns/mnt")
    except OSError:
        return ""
