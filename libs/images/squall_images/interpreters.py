"""Finds the Python interpreters of this machine. Never downloads one."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from squall.errors import ImageBuildError

OLDEST = (3, 9)
_ASK = "import sys; print(getattr(sys, '_base_executable', '') or sys.executable, *sys.version_info[:3])"
_PREFIXES = ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin")
_MANAGED = (
    ".pyenv/versions/3.*/bin/python",
    ".asdf/installs/python/3.*/bin/python",
    ".local/share/mise/installs/python/3.*/bin/python",
    ".local/share/uv/python/cpython-3.*/bin/python3",
)
"""Below the home folder, with the version in the name of the folder."""
_NAME = re.compile(r"python3\.\d+")
QUERY_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Interpreter:
    """One CPython, outside of any environment."""

    path: Path
    version: tuple[int, int, int]

    @property
    def minor(self) -> str:
        """Such as "3.11"."""
        return f"{self.version[0]}.{self.version[1]}"

    @property
    def full(self) -> str:
        """Such as "3.11.7"."""
        return ".".join(map(str, self.version))


def find(version: str, found: Iterable[Interpreter]) -> Interpreter:
    """The newest interpreter of that minor (or exact) version. Raises `ImageBuildError` naming those that are there."""
    known = list(found)
    fitting = [python for python in known if version in (python.minor, python.full)]
    if fitting:
        return max(fitting, key=lambda python: python.version)
    there = ", ".join(sorted({python.minor for python in known}, key=_numbers)) or "none"
    raise ImageBuildError(
        f"no Python {version} on this machine (found: {there})",
        fix=f"Install it, e.g. by `uv python install {version}` (nothing is downloaded by itself), or choose one that "
        "is there with Image.debian_slim(python_version=...).",
        python_version=version,
    )


async def installed() -> list[Interpreter]:
    """Every interpreter from 3.9 on: the agent's own, those of version managers, those on PATH.

    `uv python list` knows them too, but takes 2 s where a version manager's stand-ins are on PATH.
    """
    own = _own()
    managed, named = await asyncio.to_thread(_look, own.path)
    answers = await asyncio.gather(*(_ask(path) for path in named))
    found = {python.path: python for python in (own, *managed, *filter(None, answers))}
    return [python for python in found.values() if python.version >= OLDEST]


def _own() -> Interpreter:
    path = Path(getattr(sys, "_base_executable", "") or sys.executable)
    return Interpreter(path.resolve(), (sys.version_info[0], sys.version_info[1], sys.version_info[2]))


def _look(own: Path) -> tuple[list[Interpreter], list[Path]]:
    """Interpreters whose folder tells the version, and paths that have to be asked."""
    home = Path.home()
    managed = []
    for pattern in _MANAGED:
        for path in home.glob(pattern):
            version = re.search(r"(3)\.(\d+)\.(\d+)", path.parent.parent.name)
            if version is not None:
                major, minor, patch = map(int, version.groups())
                managed.append(Interpreter(path.resolve(), (major, minor, patch)))
    known = {own, *(python.path for python in managed)}
    # Stand-ins ("shims") only lead to what was found above, and some refuse.
    folders = {Path(folder) for folder in (*os.get_exec_path(), *_PREFIXES) if Path(folder).name != "shims"}
    named = {path.resolve() for folder in folders for path in folder.glob("python3.*") if _NAME.fullmatch(path.name)}
    return managed, sorted(named - known)


async def _ask(path: Path) -> Interpreter | None:
    """What the interpreter says of itself; a version manager's stand-in on PATH may refuse."""
    answer = await _output([str(path), "-I", "-S", "-c", _ASK])
    try:
        return _answered(answer)
    except ValueError:
        return None


def _answered(answer: str) -> Interpreter:
    executable, *version = answer.split()
    major, minor, patch = map(int, version)
    return Interpreter(Path(executable).resolve(), (major, minor, patch))


async def _output(command: list[str]) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return ""
    try:
        async with asyncio.timeout(QUERY_TIMEOUT_S):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return ""
    return out.decode("utf-8", "replace") if process.returncode == 0 else ""


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
