"""Volumes of build steps: brought to this machine before the step, committed after it. The builder's side, since a
build has no way to the platform.

What a step left in a folder was written by users' code: links are read, never followed, and by then nothing of the
step runs any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squall.errors import AuthError, ImageBuildError, InvalidError, StorageFullError
from squall.http_api.protocol import parse_blob_ref
from squall.http_api.routes import Route
from squall.http_api.storage import VolumeHead
from squall.spec import VolumeMount, check_mounts, from_wire
from squall_builder import volume_folder
from squall_builder.volume_folder import Folder
from squall_contracts.volumes import MAX_LIST_BYTES
from squall_images.build_room import OWN, Bind, OnLine
from squall_images.step_volumes import VARIABLE, Brought, Volumes
from squall_images.trees import remove
from squall_service import volume_lists
from squall_service.asking import get_json, post_json
from squall_service.blobs import Blobs, GatewayStore

CHANGES_AT_ONCE = 10_000
"""In one version; the gateway takes no more."""
TOKEN_TRIES, TOKEN_WAIT_S = 5, 0.5
"""A gateway may have seen a token before the bus told it that it is one."""

Token = Callable[[], AbstractAsyncContextManager[str]]
"""A token of the workspace that asks, for as long as the block runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepVolumes:
    """Those of one workspace."""

    blobs: Blobs
    """The builder's own."""
    gateway_url: str
    workspace: str
    token: Token

    @property
    def bringing(self) -> Volumes:
        """As images want it."""
        return self._brought

    @contextlib.asynccontextmanager
    async def _brought(
        self, references: Sequence[Mapping[str, Any]], folder: Path, on_line: OnLine
    ) -> AsyncIterator[Brought]:
        mounts = _checked(references)
        async with self.token() as token:
            try:
                folders = [
                    await self._bring(mount, folder / str(number), token, on_line)
                    for number, mount in enumerate(mounts)
                ]
                yield Brought(
                    tuple(Bind(source=each.place, target=each.mount.path, read_only=each.mount.read_only)
                          for each in folders),
                    {VARIABLE: json.dumps([each.told() for each in folders])},
                )  # fmt: skip
                for each in folders:
                    if not each.mount.read_only:
                        await self._commit(each, token, on_line)
            finally:
                await asyncio.to_thread(remove, folder)

    async def _bring(self, mount: VolumeMount, place: Path, token: str, on_line: OnLine) -> Folder:
        head = await self._head(mount, token)
        blobs = self.blobs.of_volumes(self.workspace, token)
        listed = volume_lists.parse(await self._list(head, place, blobs)) if head.manifest else volume_lists.NOTHING
        found = volume_folder.below(listed, mount.sub_path)
        wanted = sum(file.size for file in found.files)
        await asyncio.to_thread(place.mkdir, parents=True)
        free = await asyncio.to_thread(volume_folder.free_bytes, place)
        if wanted > free:
            raise StorageFullError(
                f"volume {mount.name or mount.volume} has {wanted >> 20} MiB, the builder's disk {free >> 20} MiB free",
                fix="Free disk space at the builder, or mount a folder of it: `with_mount_options(sub_path=...)`.",
            )
        if wanted:
            on_line(f"bringing {wanted >> 20} MiB of volume {mount.name or mount.volume} to {mount.path}")
        stamps = await volume_folder.fill(place, found, blobs)
        known = {file.path: file for file in found.files}
        return Folder(mount=mount, place=place, version=head.version, known=known, stamps=stamps)

    async def _list(self, head: VolumeHead, place: Path, blobs: Blobs) -> bytes:
        if parse_blob_ref(head.manifest)[1] > MAX_LIST_BYTES:
            raise ImageBuildError("a volume's list of files is larger than any volume's")
        file = place.with_name(place.name + ".list")
        await blobs.fetch(head.manifest, file)
        return await asyncio.to_thread(file.read_bytes)

    async def _head(self, mount: VolumeMount, token: str) -> VolumeHead:
        path = Route.VOLUME_HEAD.format(object=mount.volume)
        for left in reversed(range(TOKEN_TRIES)):
            try:
                return from_wire(VolumeHead, await asyncio.to_thread(get_json, self.gateway_url, path, token))
            except AuthError:
                if not left:
                    raise
            await asyncio.sleep(TOKEN_WAIT_S)
        raise AssertionError("unreachable")

    async def _commit(self, folder: Folder, token: str, on_line: OnLine) -> None:
        """What the step changed; of a file that others changed meanwhile this one counts."""
        store = Blobs(GatewayStore(self.gateway_url, token, Route.VOLUME_BLOCK))
        changes, left_out = await volume_folder.changes(folder, store)
        for path, why in left_out.items():
            on_line(f"volume {folder.label}: {path} {why}; it is not kept")
        for first in range(0, len(changes), CHANGES_AT_ONCE):
            some = changes[first : first + CHANGES_AT_ONCE]
            body = {"changes": some, "expect": None, "request": secrets.token_hex(8)}
            path = Route.VOLUME_COMMITS.format(object=folder.mount.volume)
            answer = await asyncio.to_thread(post_json, self.gateway_url, path, token, body)
            on_line(f"volume {folder.label} is at version {answer['version']}: {len(some)} changes")


def _checked(references: Sequence[Mapping[str, Any]]) -> tuple[VolumeMount, ...]:
    """What users' programs say is not believed. Raises `ImageBuildError`."""
    try:
        mounts = tuple(from_wire(VolumeMount, dict(reference)) for reference in references)
        check_mounts(mounts, ())
        for mount in mounts:
            if mount.path == OWN or mount.path.startswith(f"{OWN}/") or ".." in mount.sub_path.split("/"):
                raise InvalidError(f"{mount.path} is the build's own")
    except (TypeError, ValueError, InvalidError) as error:
        raise ImageBuildError(f"a build step names volumes that cannot be mounted: {error}") from error
    return mounts
