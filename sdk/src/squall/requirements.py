"""Requirements from files of the user's project: requirements.txt, pyproject.toml, uv.lock. As text for the builder.

Read when an image is first needed, on the user's machine; containers never come here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Optional

from squall.errors import InvalidError

LOCAL = ("-e", "--editable", "-c", "--constraint")
MAX_BYTES = 256 * 1024
"""The text is a part of the function's declaration."""
UV_TIMEOUT_S = 120


def of_file(path: str) -> str:
    """The lines of a requirements file that mean something, with the files that it names in their places."""
    lines: list[str] = []
    for line in _joined(_read(path)):
        option, _, rest = line.replace("=", " ", 1).partition(" ") if line.startswith("-") else ("", "", "")
        if option in ("-r", "--requirement"):
            lines += of_file(os.path.join(os.path.dirname(path), rest.strip())).splitlines()
        elif option in LOCAL or line.startswith((".", "/", "file:")):
            raise InvalidError(
                f"{path}: {line!r} names something of this machine, which the builder does not have",
                fix="List packages of an index; attach your own code with `add_local_python_source`.",
            )
        else:
            lines.append(line)
    return _checked(path, "".join(f"{line}\n" for line in lines))


def of_pyproject(path: str, extras: Sequence[str]) -> list[str]:
    """`project.dependencies`, and those of some `project.optional-dependencies`."""
    project = _toml(path).get("project", {})
    if "dependencies" not in project:
        raise InvalidError(f"{path} has no project.dependencies", fix="List them there, or use `pip_install`.")
    found = list(project["dependencies"])
    optional = project.get("optional-dependencies", {})
    for extra in extras:
        if extra not in optional:
            raise InvalidError(f"{path} has no optional dependencies {extra!r}; it has {sorted(optional)}")
        found += optional[extra]
    return found


def of_lock(folder: str, groups: Sequence[str], extras: Sequence[str], frozen: bool) -> str:
    """What `uv sync` would install for the project of a folder, its own code left out."""
    for name in ("pyproject.toml", "uv.lock") if frozen else ("pyproject.toml",):
        if not os.path.isfile(os.path.join(folder, name)):
            raise InvalidError(f"{os.path.join(folder, name)} is not there", fix="Run `uv lock` in the project.")
    command = [_uv(), "export", "--quiet", "--no-hashes", "--no-header", "--no-annotate", "--no-emit-project"]
    command += ["--frozen"] if frozen else []
    command += [word for group in groups for word in ("--group", group)]
    command += [word for extra in extras for word in ("--extra", extra)]
    try:
        done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=UV_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise InvalidError(f"`uv export` of {folder} took longer than {UV_TIMEOUT_S} s") from None
    if done.returncode:
        raise InvalidError(f"`uv export` of {folder} failed: {done.stderr.strip()}")
    return _checked(folder, "".join(f"{line}\n" for line in _joined(done.stdout)))


def of_poetry(
    path: str, lock_path: Optional[str], with_: Sequence[str], without: Sequence[str], only: Sequence[str]
) -> str:
    """What `poetry install` would install for a pyproject.toml, its own code left out. No lock: what it declares."""
    from squall import poetry_lock

    lock = None if lock_path is None else _toml(lock_path)
    return _checked(path, poetry_lock.requirements(_toml(path), lock, poetry_lock.Groups(with_, without, only)))


def _uv() -> str:
    beside = os.path.join(os.path.dirname(sys.executable), "uv")
    found = beside if os.path.isfile(beside) else shutil.which("uv")
    if found is None:
        raise InvalidError("Image.uv_sync needs the command uv here, to read uv.lock", fix="Install it: pip install uv")
    return found


def _toml(path: str) -> dict[str, Any]:
    text = _read(path)
    try:
        import tomllib  # novm  # from Python 3.11 on
    except ImportError:
        raise InvalidError(f"reading {path} needs Python 3.11 or later here", fix="Use `pip_install`.") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidError(f"{path} is not valid TOML: {error}") from error


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"{path} cannot be read: {error}") from error


def _joined(text: str) -> list[str]:
    """Lines without comments, continued ones in one."""
    lines = []
    for line in text.replace("\\\n", " ").splitlines():
        line = line.partition(" #")[0].strip()
        if line and not line.startswith("#"):
            lines.append(line)
    return lines


def _checked(path: str, text: str) -> str:
    if len(text) > MAX_BYTES:
        raise InvalidError(f"the requirements of {path} have {len(text)} bytes, at most {MAX_BYTES} are possible")
    return text
