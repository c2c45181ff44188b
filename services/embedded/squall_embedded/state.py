"""The files by which others find the platform: the announcement (server.json), the tokens, the lock on the folder."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from squall import errors

PID_FILE = "platform.pid"
WORKSPACE_TOKEN_FILE = "token"
SERVICE_TOKEN_FILE = "service-token"
SECRETS_KEY_FILE = "secrets-key"
MAX_SCRATCH_PATH = 80
"""Characters. The path of a unix socket has at most 107, and agents put theirs two levels below."""
SHORT_FOLDER = "/tmp"
SCRATCH_PREFIX = "squall-tmp-"
"""`squall.local` in the SDK removes folders of this name when their platform was killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What clients read: `squall.local.LocalServer` in the SDK is the other side."""

    url: str
    token: str
    pid: int
    data: str
    mode: str
    started_at: float
    processes: list[dict[str, Any]] = field(default_factory=list)
    """name, pid and, for gateways, url of each part."""

    def as_json(self) -> str:
        """One line."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})


def claim_folder(data: Path) -> int:
    """Makes the folder ours for as long as the returned descriptor is open. Raises `ConflictError` if it is taken."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise errors.ConflictError(
            f"another platform uses {data}",
            fix="Stop it with `squall down`, or choose another folder with `--data`.",
        ) from None
    write_private(data / PID_FILE, str(os.getpid()))
    return lock


def use_scratch(data: Path) -> None:
    """Makes an empty folder the place for this process's temporary files; what an earlier life left in it goes.

    It is `tmp` in the platform's folder. Where sockets in there would have too long a path, `tmp` is a link to a folder
    with a short one: whoever removes the platform's folder finds it.
    """
    clear_scratch(data)
    folder = data / "tmp"
    if len(str(folder)) <= MAX_SCRATCH_PATH:
        folder.mkdir(mode=0o700)
    else:
        folder.symlink_to(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=SHORT_FOLDER))
    tempfile.tempdir = os.path.realpath(folder)


def clear_scratch(data: Path) -> None:
    """Removes it with everything in it."""
    folder = data / "tmp"
    if folder.is_symlink():
        _clear_linked(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _clear_linked(link: Path) -> None:
    if link.is_symlink():
        if link.readlink().name.startswith(SCRATCH_PREFIX):
            shutil.rmtree(link.readlink(), ignore_errors=True)
        link.unlink()


def remove_folder(data: Path) -> None:
    """Removes everything of a platform."""
    clear_scratch(data)
    for staging in data.glob("*/staging"):
        _clear_linked(staging)
    shutil.rmtree(data, ignore_errors=True)


def token(data: Path, name: str) -> str:
    """The token or key in that file (base64 of 32 bytes); a new one when there is none yet."""
    file = data / name
    try:
        present = file.read_text().strip()
    except FileNotFoundError:
        present = ""
    if present:
        return present
    fresh = secrets.token_urlsafe(32)
    write_private(file, fresh)
    return fresh


def write_private(file: Path, text: str) -> None:
    """Replaces a file at once, readable by its owner only."""
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
    scratch.replace(file)


def remove_if_ours(file: Path) -> None:
    """Removes an announcement unless another platform has replaced it."""
    try:
        body: Mapping[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return
    if body.get("pid") == os.getpid():
        file.unlink(missing_ok=True)
