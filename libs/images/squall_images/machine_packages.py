"""Packages of the machine, which containers without isolation share: whether what `apt_install` names is there.

Only reads what dpkg has written; nothing is installed on a machine that is not ours alone.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from squall.errors import ImageBuildError
from squall.spec import ImageSpec

STATUS = Path("/var/lib/dpkg/status")
"""What dpkg knows of each package (dpkg(1), FILES)."""
APT_KIND = "apt_install"
_INSTALLED = re.compile(r"^Package: (\S+)\n(?:.+\n)*?Status: \S+ ok installed$", re.MULTILINE)


def check(names: Sequence[str]) -> None:
    """Raise `ImageBuildError` naming those that are not installed."""
    if missing := lacking(names):
        raise ImageBuildError(
            f"this machine does not have {', '.join(missing)}, which apt_install names",
            fix=f"Containers that are plain processes use what the machine has: `apt-get install {' '.join(missing)}` "
            "there, or run them isolated on a base that has apt (`squall up --backend sandbox`, "
            "docs/explanation/images.md).",
            step=APT_KIND,
        )


def lacking(names: Sequence[str]) -> list[str]:
    """Those that are not installed here, sorted; all where there is no dpkg."""
    try:
        about = STATUS.stat()
    except OSError:
        return sorted(names)
    found = _installed(about.st_mtime_ns, about.st_size)
    return sorted(name for name in names if _bare(name) not in found)


def needs_sandbox(image: ImageSpec) -> bool:
    """Whether containers of this image are sandboxes on a machine that has both: they need files of their own, or
    packages of the system that this machine does not have."""
    steps = (step for step in image.steps if step.kind == APT_KIND)
    names = [str(name) for step in steps for name in step.arguments.get("packages") or ()]
    return image.needs_isolation or bool(names and lacking(names))


def _bare(name: str) -> str:
    """Without version, release and architecture: `git=1:2.39`, `git/bookworm`, `git:amd64`."""
    for mark in "=/:":
        name = name.partition(mark)[0]
    return name


@functools.lru_cache(maxsize=1)
def _installed(mtime_ns: int, size: int) -> frozenset[str]:
    """By name; the arguments are those of the file that was read."""
    return frozenset(_INSTALLED.findall(STATUS.read_text(errors="replace")))
