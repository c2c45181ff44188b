"""Finds the Python interpreters of this machine. Never downloads one."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from squall.errors import ImageBuildError

OLDEST = (3, 9)
_ASK = "import sys; print(getattr(sys, '_base_executable', '') or sys.executable, *sys.version_info[:3])"
_PREFIXES = ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin")
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


async def find(version: str, found: Iterable[Interpreter]) -> Interpreter:
    """The newest interpreter of that minor (or exact) version. Raises `ImageBuildError` naming those that are there."""
    known = list(found)
    fitting = [python for python in known if version in (python.minor, python.full)]
    if fitting:
        return max(fitting, key=lambda python: python.version)
    there = ", ".join(sorted({python.minor for python in known}, key=_numbers)) or "none"
    raise ImageBuildError(
        f"no Python {version} on this machine (found: {there})",
        fix=f"Install Python {version} (nothing is downloaded by itself), or choose one that is there with "
        "Image.debian_slim(python_version=...).",
        python_version=version,
    )


async def installed(uv: Path) -> list[Interpreter]:
    """Every interpreter from 3.9 on: the agent's own, those on PATH and known to uv, those of pyenv."""
    own = _own()
    paths = {*await _known_to_uv(uv), *_pyenv(), *_prefixed()}
    answers = await asyncio.gather(*(_ask(path) for path in sorted(paths) if path != own.path))
    found = {python.path: python for python in (own, *filter(None, answers))}
    return [python for python in found.values() if python.version >= OLDEST]


def _own() -> Interpreter:
    path = Path(getattr(sys, "_base_executable", "") or sys.executable)
    return Interpreter(path.resolve(), (sys.version_info[0], sys.version_info[1], sys.version_info[2]))


async def _known_to_uv(uv: Path) -> list[Path]:
    arguments = ["python", "list", "--offline", "--only-installed", "--no-config", "--output-format", "json"]
    answer = await _output([str(uv), *arguments])
    try:
        rows = json.loads(answer or "[]")
    except ValueError:
        return []
    return [Path(row["path"]) for row in rows if row.get("path") and row.get("implementation") == "cpython"]


def _pyenv() -> list[Path]:
    versions = Path.home() / ".pyenv" / "versions"
    return [p for p in versions.glob("3.*/bin/python") if re.fullmatch(r"3\.\d+\.\d+", p.parent.parent.name)]


def _prefixed() -> list[Path]:
    return [path for prefix in _PREFIXES for path in Path(prefix).glob("python3.[0-9]*") if "-" not in path.name]


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
