"""Volumes of this container: which there are, and when what was written to them becomes a version.

Owns the moments: every few seconds, and once more at the end. What a commit is, knows `squall.mounted`, which is loaded
when there is something to commit.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from typing import Any, Callable, NamedTuple

INTERVAL_S = 5.0
"""What a killed container wrote in the last seconds before its end is lost: this many, and what a commit takes."""


class Mount(NamedTuple):
    """One volume, as the agent mounted it."""

    path: str
    """The folder that the user's code sees."""
    id: str
    name: str
    """When the function was published; empty for one without a name."""
    environment: str
    read_only: bool
    sub_path: str
    """What is mounted of it; empty: all."""
    version: int
    manifest: str
    """Blob with the files of that version."""
    upper: str
    """A folder with what was changed here: the upper layer of an overlay."""
    inner: str
    """The same as `path`, and writable also where that is not."""


mounts: list[Mount] = []
_stopped = threading.Event()
_committer: list[threading.Thread] = []
_give_up: list[Callable[[], object]] = []
"""In a template: ends it as one. Its mounts are not those of its forks."""


def begin(told: list[dict[str, Any]]) -> None:
    """This container has these volumes. Not in templates, which must have one thread."""
    _give_up.clear()
    mounts[:] = [Mount(**{name: each[name] for name in Mount._fields}) for each in told]
    if any(not mount.read_only for mount in mounts):
        thread = threading.Thread(target=_commit_often, name="squall-volumes", daemon=True)
        _committer.append(thread)
        thread.start()


def begin_template(give_up: Callable[[], object]) -> None:
    """This is a template of such containers."""
    _give_up[:] = [give_up]


def commits_here() -> None:
    """Returns where commits and reloads have a meaning. A template gives up being one, and does not return."""
    for give_up in _give_up:
        give_up()


def changed() -> bool:
    """Whether anything was ever written to one of them; an open folder costs microseconds, the engine its import."""
    return any(not mount.read_only and _has_entries(mount.upper) for mount in mounts)


def finish() -> None:
    """The last commit: nothing of the user's runs any more."""
    _stopped.set()
    if changed():
        _engine().finish()


def _commit_often() -> None:
    while not _stopped.wait(INTERVAL_S):
        try:
            if changed():
                _engine().commit_behind()
        except Exception as error:  # noqa: BLE001  # the next one must come, whatever user code did to the interpreter
            sys.stderr.write(f"squall: a commit in the background failed and will be tried again: {error!r}\n")


def _engine() -> Any:
    return importlib.import_module("squall.mounted")


def _has_entries(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError as error:
        sys.stderr.write(f"squall: a volume cannot be looked at: {error}\n")
        return False
