"""What a container mounts: for each volume of its function the version that is the newest when it starts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from squall.errors import AuthError, InvalidError, SquallError
from squall.http_api.protocol import parse_blob_ref
from squall.http_api.routes import Route
from squall.http_api.storage import VolumeHead
from squall.spec import VolumeMount, from_wire
from squall_contracts.functions import FunctionRecord
from squall_gpu_agent.backend import MountedVolume
from squall_gpu_agent.tasks import Tasks
from squall_gpu_agent.volumes.trees import Trees
from squall_service.asking import get_json, is_there
from squall_service.telemetry import log

TOKEN_TRIES, TOKEN_WAIT_S = 5, 0.5
"""A gateway may have seen a token before the bus told it that it is one."""


class Mounts:
    """Prepares them, and knows which container has which."""

    def __init__(self, trees: Trees, gateway_url: str, tasks: Tasks) -> None:
        self._trees = trees
        self._tasks = tasks
        self._url = gateway_url
        self._held: dict[str, list[Path]] = {}
        self._lists: dict[str, dict[str, str]] = {}
        """Of each container: the lists of files that it may still ask for, and its token."""

    async def of(self, container: str, function: FunctionRecord, token: str) -> tuple[MountedVolume, ...]:
        """The volumes, here and ready. Asked for with the container's token: the gateway says what it may see.

        Raises `SquallError`, `OSError`."""
        mounts: list[MountedVolume] = []
        for wanted in function.spec.volumes:
            head = await self._head(wanted, token)
            blobs = self._trees.blobs.of_volumes(function.workspace, token)
            tree = await self._trees.use(wanted.volume, head.manifest, blobs)
            self._held.setdefault(container, []).append(tree)
            if head.manifest:
                self._lists.setdefault(container, {})[parse_blob_ref(head.manifest)[0]] = token
            lower = await asyncio.to_thread(folder_of, tree, wanted.sub_path, self._trees.nothing)
            mounts.append(MountedVolume(mount=wanted, lower=lower, version=head.version, manifest=head.manifest))
        return tuple(mounts)

    def forget(self, container: str) -> None:
        """It has ended, or did not start."""
        self._lists.pop(container, None)
        held = self._held.pop(container, ())
        for tree in held:
            self._trees.release(tree)
        if held:
            self._tasks.start(self._trees.tidy(), "tidying volumes")

    async def keep_lists(self) -> None:
        """A list that nobody asks for is removed some time after its version was replaced. A container has the files of
        its version, and asks for the list when it commits or reloads first."""
        for sha256, token in {item for lists in list(self._lists.values()) for item in lists.items()}:
            path = Route.VOLUME_BLOCK.format(sha256=sha256)
            try:
                await asyncio.to_thread(is_there, self._url, path, token)
            except SquallError as error:
                log.warning("volume_list_not_kept", reason=error.message)

    async def _head(self, wanted: VolumeMount, token: str) -> VolumeHead:
        path = Route.VOLUME_HEAD.format(object=wanted.volume)
        for left in reversed(range(TOKEN_TRIES)):
            try:
                return from_wire(VolumeHead, await asyncio.to_thread(get_json, self._url, path, token))
            except AuthError:
                if not left:
                    raise
            await asyncio.sleep(TOKEN_WAIT_S)
        raise AssertionError("unreachable")


def folder_of(tree: Path, sub_path: str, nothing: Path) -> Path:
    """A folder in a tree. Links on the way are other people's words: they are not followed. Raises `InvalidError`."""
    parts: Sequence[str] = [part for part in sub_path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidError(f"sub_path {sub_path!r} leads out of the volume")
    here = tree
    for part in parts:
        here = here / part
        if here.is_symlink() or (here.exists() and not here.is_dir()):
            raise InvalidError(f"sub_path {sub_path!r} is not a folder of the volume", fix="Name a folder of it.")
        if not here.exists():
            return nothing
    return here
