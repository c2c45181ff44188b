"""Volumes: versions of files. Owns the bucket `volumes`; blocks and lists of files are named by their content.

A commit writes the list first and moves the volume's head last, by one compare-and-set. If somebody else was faster,
the changes are made again on top of theirs: different files of two commits are both there, of one file the later is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from weakref import WeakValueDictionary

from squall.errors import ConflictError, InvalidError, NotFoundError
from squall.http_api.protocol import blob_ref, parse_blob_ref
from squall.http_api.storage import BLOCK_BYTES, CommitVolume, VolumeFile, VolumeVersion
from squall.http_api.storage import VolumeHead as HeadInfo
from squall.spec import to_wire
from squall_bus import Bus, KeyExists, WrongRevision
from squall_contracts.volumes import MAX_LIST_BYTES, VOLUMES, VolumeHead, volume_key
from squall_gateway.blobs import check_sha256
from squall_gateway.policy.volume_lists import blocks_of, files_in
from squall_gateway.policy.volumes import Files, applied, check_file, check_link, followed
from squall_gateway.volume_blocks import Room, Rooms, once
from squall_service.clock import Clock

TRIES = 20
MAX_CHANGES = 10_000
KNOWN_LISTS = 16
RECENT = 32
"""Commits whose requests are known when they are repeated."""


class Volumes:
    """The contents of all volumes."""

    def __init__(self, bus: Bus, rooms: Rooms, clock: Clock) -> None:
        self._bucket = bus.kv(VOLUMES)
        self._rooms = rooms
        self._clock = clock
        self._lists: OrderedDict[str, Files] = OrderedDict()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def files(self, workspace: str, object_id: str) -> tuple[VolumeVersion, Files]:
        """The present version and its files."""
        head, _ = await self._head(workspace, object_id)
        return version_of(head), await self._list(workspace, head)

    async def head(self, workspace: str, object_id: str) -> HeadInfo:
        """The present version, and where its list of files is."""
        head, _ = await self._head(workspace, object_id)
        return HeadInfo(version=head.version, manifest=head.manifest)

    async def file(self, workspace: str, object_id: str, path: str) -> VolumeFile:
        """One file. Raises `NotFoundError`."""
        _, files = await self.files(workspace, object_id)
        found = followed(files, path)
        if found is None:
            raise NotFoundError(f"there is no file {path!r}")
        return found

    async def commit(self, workspace: str, object_id: str, wanted: CommitVolume) -> VolumeVersion:
        """Make all changes, or none. Raises what is wrong with one, and `ConflictError` for another version than the
        expected one."""
        if len(wanted.changes) > MAX_CHANGES:
            raise InvalidError(f"a commit can have {MAX_CHANGES} changes", fix="Make several.")
        # A hundred containers that end together commit at once: by turns none of them tries in vain.
        async with self._turns.setdefault(f"{workspace}.{object_id}", asyncio.Lock()):
            return await self._committed(workspace, object_id, wanted)

    async def _committed(self, workspace: str, object_id: str, wanted: CommitVolume) -> VolumeVersion:
        room, blocks = self._rooms.of(workspace), _blocks_of(wanted)
        for _ in range(TRIES):
            head, revision = await self._begun(workspace, object_id)
            made = next((version for request, version in head.recent if request == wanted.request), None)
            if wanted.request and made is not None:  # the answer to this very request was lost on its way
                return replace(version_of(head), version=made)
            if wanted.expect is not None and wanted.expect != head.version:
                raise ConflictError(f"the volume is at version {head.version}, not {wanted.expect}")
            # Thousands of changes of a large volume take a while, and others are waiting for this process.
            present = await self._list(workspace, head)
            files = await asyncio.to_thread(applied, present, wanted.changes)
            sha256, size = await self._store(room, files)
            # After the head was read, and the list was stored: see `Room.require`.
            await room.require(blocks | {sha256: size}, present)
            moved = VolumeHead(
                volume_id=object_id,
                version=head.version + 1,
                manifest=blob_ref(sha256, size),
                files=len(files),
                size=sum(file.size for file in files.values()),
                committed_at=self._clock.now(),
                recent=[[wanted.request, head.version + 1], *head.recent][:RECENT],
            )
            try:
                await self._bucket.update(volume_key(workspace, object_id), moved.encode(), revision)
            except WrongRevision:
                continue
            return version_of(moved)
        raise ConflictError(f"the volume was changed by others at the same time, {TRIES} times in a row")

    async def _begun(self, workspace: str, object_id: str) -> tuple[VolumeHead, int]:
        """The head, which is there from now on: a collector moves every head, and finds only those that are there."""
        head, revision = await self._head(workspace, object_id)
        if not revision:
            with contextlib.suppress(KeyExists):
                await self._bucket.create(volume_key(workspace, object_id), head.encode())
            head, revision = await self._head(workspace, object_id)
        return head, revision

    async def clear(self, workspace: str, object_id: str) -> None:
        """The volume is gone."""
        await self._bucket.delete(volume_key(workspace, object_id))

    async def _head(self, workspace: str, object_id: str) -> tuple[VolumeHead, int]:
        entry = await self._bucket.get(volume_key(workspace, object_id), from_leader=True)
        if entry is None:
            return VolumeHead(object_id, 0, "", 0, 0, 0.0), 0
        return VolumeHead.decode(entry.value), entry.revision

    async def _list(self, workspace: str, head: VolumeHead) -> Files:
        if not head.manifest:
            return {}
        known = self._lists.get(head.manifest)
        if known is None:
            body = await self._rooms.read(workspace, parse_blob_ref(head.manifest)[0])
            known = {file.path: file for file in await asyncio.to_thread(files_in, body)}
            self._lists[head.manifest] = known
            if len(self._lists) > KNOWN_LISTS:
                self._lists.popitem(last=False)
        return known

    async def _store(self, room: Room, files: Mapping[str, VolumeFile]) -> tuple[str, int]:
        body = json.dumps({"files": [to_wire(files[path]) for path in sorted(files)]}, separators=(",", ":")).encode()
        if len(body) > MAX_LIST_BYTES:
            raise InvalidError(
                f"the list of the volume's files would have {len(body) >> 20} MiB, at most {MAX_LIST_BYTES >> 20} fit",
                fix="Shorten paths, or pack small files into archives.",
            )
        sha256 = hashlib.sha256(body).hexdigest()
        await room.store.put(sha256, once(body))
        return sha256, len(body)


def _blocks_of(wanted: CommitVolume) -> dict[str, int]:
    """The blocks that the changes name, and their sizes. Raises what is wrong with a file."""
    sizes: dict[str, int] = {}
    for change in wanted.changes:
        if change.file is None:
            continue
        file = change.file
        check_file(change.path, file)
        if file.link:
            check_link(change.path, file.link)
            if file.size or file.blocks:
                raise InvalidError(f"{change.path}: a link has no content")
        if file.size < 0 or len(file.blocks) != -(-file.size // BLOCK_BYTES):
            raise InvalidError(f"{change.path}: {len(file.blocks)} blocks cannot be a file of {file.size} bytes")
        for sha256, size in blocks_of(file):
            if sizes.setdefault(check_sha256(sha256), size) != size:
                raise InvalidError(f"{change.path}: block {sha256} has {sizes[sha256]} bytes elsewhere, not {size}")
    return sizes


def version_of(head: VolumeHead) -> VolumeVersion:
    """What is told about a version."""
    return VolumeVersion(version=head.version, files=head.files, size=head.size, committed_at=head.committed_at)
