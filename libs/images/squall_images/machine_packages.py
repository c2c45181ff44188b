"""Packages of the machine, which containers without isolation share: whether what `apt_install` names is there.

Only asks; nothing is installed on a machine that is not ours alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from squall.errors import ImageBuildError

QUERY_TIMEOUT_S = 20.0
_INSTALLED = "ii"


async def check(names: Sequence[str]) -> None:
    """Raise `ImageBuildError` naming those that are not installed."""
    wanted = {name: _bare(name) for name in names}
    found = await _installed(sorted(set(wanted.values())))
    lacking = sorted(name for name, bare in wanted.items() if bare not in found)
    if lacking:
        raise ImageBuildError(
            f"this machine does not have {', '.join(lacking)}, which apt_install names",
            fix=f"Containers that are plain processes use what the machine has: `apt-get install {' '.join(lacking)}` "
            "there, or run them isolated on a base that has apt (`squall up --backend sandbox`, "
            "docs/explanation/images.md).",
            step="apt_install",
        )


def _bare(name: str) -> str:
    """Without version, release and architecture: `git=1:2.39`, `git/bookworm`, `git:amd64`."""
    for mark in "=/:":
        name = name.partition(mark)[0]
    return name


async def _installed(names: Sequence[str]) -> set[str]:
    """Those of them that dpkg knows as installed; none where there is no dpkg."""
    command = ["dpkg-query", "--show", "--showformat", "${db:Status-Abbrev} ${Package}\\n", "--", *names]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return set()
    try:
        async with asyncio.timeout(QUERY_TIMEOUT_S):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = (line.split() for line in out.decode("utf-8", "replace").splitlines())
    return {words[1] for words in lines if len(words) == 2 and words[0] == _INSTALLED}
