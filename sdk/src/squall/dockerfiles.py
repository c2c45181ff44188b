"""Dockerfiles of images: the text, and which files of this machine its COPY and ADD lines need."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from typing import Optional

from squall import patterns
from squall.errors import InvalidError
from squall.image_files import Ignore

INSTRUCTIONS_REFUSED = {"ONBUILD"}
MAX_BYTES = 256 * 1024
"""The text is a part of the function's declaration."""
IGNORE_FILE = ".dockerignore"


def read(path: str) -> str:
    """The text of a Dockerfile. Raises `InvalidError`."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"the Dockerfile {path} cannot be read: {error}") from error
    if len(text) > MAX_BYTES:
        raise InvalidError(f"the Dockerfile {path} has more than {MAX_BYTES} bytes")
    return checked(text)


def checked(text: str) -> str:
    """The text itself. Raises `InvalidError` for instructions that containers of squall cannot have."""
    for line in _instructions(text):
        if line.split(None, 1)[0].upper() in INSTRUCTIONS_REFUSED:
            raise InvalidError(f"{line!r} is not possible in an image of squall", fix="Remove the line.")
    return text


def context(text: str, folder: str, ignore: Optional[Ignore]) -> dict[str, str]:
    """Local path by path in the context of every file that the text copies. `ignore` None: what .dockerignore says."""
    wanted = copied(text)
    if wanted is not None and not wanted:
        return {}
    if not os.path.isdir(folder):
        raise InvalidError(f"the context folder {folder} does not exist")
    from squall import bundle

    if ignore is None:
        ignore = _ignore_file(folder)
    includes = None if wanted is None else patterns.matcher(wanted)
    ignores = bundle.ignores(ignore)
    return {
        f"/{below}": local
        for below, local in bundle.files_below(folder)
        if (includes is None or includes(below)) and not ignores(below)
    }


def _ignore_file(folder: str) -> list[str]:
    try:
        with open(os.path.join(folder, IGNORE_FILE), encoding="utf-8") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def copied(text: str) -> Optional[list[str]]:
    """Patterns of the files that COPY and ADD lines name; None = all of the context."""
    found: list[str] = []
    for line in _instructions(text):
        words = _arguments(line)
        if words is None:
            continue
        for source in words:
            if "://" in source:
                continue
            path = os.path.normpath(source.lstrip("/") or ".").replace(os.sep, "/")
            if path == "." or "$" in path:
                return None
            found.append(path)
    return found


def _arguments(line: str) -> Optional[list[str]]:
    """Sources of a COPY or ADD line from the context; None for any other line."""
    name, _, rest = line.partition(" ")
    if name.upper() not in ("COPY", "ADD"):
        return None
    rest = rest.strip()
    while rest.startswith("--"):
        option, _, rest = rest.partition(" ")
        rest = rest.strip()
        if option.startswith("--from="):
            return None
    try:
        words = json.loads(rest) if rest.startswith("[") else shlex.split(rest)
    except ValueError as error:
        raise InvalidError(f"the line {line!r} of a Dockerfile is not valid: {error}") from error
    return [str(word) for word in words[:-1]]


def _instructions(text: str) -> Sequence[str]:
    lines = text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
