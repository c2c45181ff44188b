"""Folders that somebody's program has made: what is in them, and their end, however deep they are."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from squall.errors import ImageBuildError

MOST_FOLDERS = 200
"""Of a path. Python's own walks take a frame of its stack for each, and the stack has 1,000."""


def entries(folder: Path) -> Iterator[str]:
    """Paths of everything in a tree that somebody's program has made or is making.

    Raises `ImageBuildError` for folders too deep to be looked into: nothing in them could be counted or checked."""
    waiting = [(str(folder), 0)]
    while waiting:
        here, depth = waiting.pop()
        try:
            with os.scandir(here) as found:
                children = [(f"{here}/{entry.name}", entry.is_dir(follow_symlinks=False)) for entry in found]
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise _too_deep(here) from error
            continue  # it is gone already
        for path, is_folder in children:
            yield path
            if is_folder:
                if depth >= MOST_FOLDERS:
                    raise _too_deep(path)
                waiting.append((path, depth + 1))


def remove(folder: Path) -> None:
    """As far as it can be removed, however deep it is. Blocks."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:
        subprocess.run(["rm", "-rf", "--", str(folder)], check=False, stderr=subprocess.DEVNULL)


def _too_deep(path: str) -> ImageBuildError:
    return ImageBuildError(f"the step made folders that are too deep, below {path[:200]}...")
