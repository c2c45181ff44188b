"""Paths in folders that code of users has written to. The builder is root on its machine: a symbolic link in a layer
must not lead it out of the layer.

Holds for folders that nobody writes to any more: a finished layer, or one whose build room has ended.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from squall.errors import ImageBuildError


def beneath(folder: Path, inside: str | PurePosixPath) -> Path:
    """`inside` (absolute as the image sees it, or relative) below `folder`, without a link on the way or at its end.

    Raises `ImageBuildError`."""
    parts = [part for part in PurePosixPath(inside).parts if part != "/"]
    if ".." in parts:
        raise ImageBuildError(f"{inside} is not a path inside of the image")
    here = folder
    for part in parts:
        here /= part
        if here.is_symlink():
            raise ImageBuildError(
                f"{inside} lies behind a symbolic link of the image ({here.relative_to(folder)})",
                fix="Let the step write to the folder itself.",
            )
    return here


def lines_of(path: Path) -> list[str]:
    """Lines of a regular file; none if it is something else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    with open(descriptor, encoding="utf-8", errors="replace") as file:
        return file.read().splitlines() if path.is_file() else []
