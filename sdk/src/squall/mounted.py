"""The volumes of this container: which are mounted, and their commits in the background and at the end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from squall.errors import ExecutionError, SquallError
from squall.mounted_volume import Mounted, say
from squall.objects import Place
from squall_runner import volumes

if TYPE_CHECKING:
    from squall.volume import Volume

_all: list[Mounted] = []


def _mounted() -> list[Mounted]:
    if len(_all) != len(volumes.mounts):
        _all[:] = [Mounted(mount) for mount in volumes.mounts]
    return _all


def _after_fork() -> None:
    for each in _all:
        each.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def of(volume: Volume) -> Mounted:
    """The mount of a volume. Raises `ExecutionError` where it has none."""
    volumes.commits_here()
    for each in _mounted():
        mount = each.mount
        if mount.name and mount.name == volume.name and mount.environment == _environment(volume):
            return each
    for each in _mounted():
        if each.mount.id == volume.hydrate().object_id:
            return each
    raise ExecutionError(
        f"{volume!r} is not mounted here",
        fix='Give it to the function: `volumes={"/data": volume}`; from outside, use `batch_upload` and `read_file`.',
    )


def _environment(volume: Volume) -> str:
    from squall import session

    chosen = volume._source.environment if isinstance(volume._source, Place) else None
    return chosen or session.current().environment


_troubles: dict[str, str] = {}


def commit_behind() -> None:
    """In the background; trouble is told once, and not again before it has changed."""
    for each in _mounted():
        if each.mount.read_only:
            continue
        try:
            each.commit_behind()
            _troubles.pop(each.label, None)
        except Exception as error:  # noqa: BLE001  # one volume's trouble is none of the others'
            if _troubles.get(each.label) != str(error):
                _troubles[each.label] = str(error)
                say(f"{each.label}: a commit in the background failed and will be tried again: {error}")


def finish() -> None:
    """The last commits."""
    for each in _mounted():
        if each.mount.read_only:
            continue
        try:
            each.finish()
        except Exception as error:  # noqa: BLE001  # one volume's trouble is none of the others'
            fix = f" ({error.hint})" if isinstance(error, SquallError) else ""
            say(f"{each.label}: the last commit failed, what was written since the one before is lost: {error}{fix}")
