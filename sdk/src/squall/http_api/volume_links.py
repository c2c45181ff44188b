"""Symbolic links in volumes: what may be kept of one. Containers and builders commit by the same rule. Pure."""

from __future__ import annotations

import posixpath
from typing import Optional


def inside(path: str, target: str, mount: str) -> Optional[str]:
    """What a link at `path` should say in the volume: a relative path within it; None if it leads out of it."""
    if target.startswith("/"):
        wanted = posixpath.normpath(target)
        if wanted != mount and not wanted.startswith(mount + "/"):
            return None
        return posixpath.relpath(wanted, posixpath.join(mount, posixpath.dirname(path)))
    depth = path.count("/")
    for part in target.split("/"):
        depth += -1 if part == ".." else part not in ("", ".")
        if depth < 0:
            return None
    return target
