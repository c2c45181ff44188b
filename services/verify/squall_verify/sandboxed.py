"""Runs whose containers are sandboxes: an image base made of this machine's Python, a folder that all see, and what is
left of them on this machine when the platform has stopped."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from squall.errors import LocalPlatformError

SHARED = "SQUALL_TESTING_SHARED_FOLDER"
MADE_S = 120.0
MAKE = "import sys; from squall_images.admin import main; sys.exit(main())"


def make_base(images: Path, scratch: Path) -> None:
    """What `squall-images base host` makes, for the platform that will have its images there."""
    version = f"debian_slim:{sys.version_info[0]}.{sys.version_info[1]}"
    told = subprocess.run(
        [sys.executable, "-P", "-c", MAKE, "--dir", str(images), "base", "host", version],
        cwd=scratch,
        capture_output=True,
        text=True,
        timeout=MADE_S,
        check=False,
    )
    if told.returncode:
        raise LocalPlatformError(f"no base could be made of this machine's Python: {told.stdout}{told.stderr}")


def tags(data: Path) -> tuple[str, ...]:
    """By which everything of a platform's agents is named in the kernel: each makes its own of its data folder."""
    folders = {each.absolute() for depth in ("*", "*/*", "*/*/*") for each in data.glob(f"{depth}/sandbox")}
    return tuple(hashlib.sha256(str(folder).encode()).hexdigest() for folder in sorted(folders))


def left_behind(tags: Sequence[str], data: Path) -> tuple[str, ...]:
    """What there still is of them."""
    return tuple(each for tag in tags for each in (*_links(tag), *_groups(tag))) + tuple(_mounts(data))


def _links(tag: str) -> Iterator[str]:
    yield from (f"link {name}" for name in os.listdir("/sys/class/net") if name.startswith(f"sq{tag[:6]}"))


def _groups(tag: str) -> Iterator[str]:
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        yield from (f"control group {folder}/{name}" for name in names if name == f"squall-{tag[:12]}")


def _mounts(data: Path) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if str(data) in line:
            yield f"mount {line}"
