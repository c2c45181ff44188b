"""Volumes: versions of files. Owns the bucket `volumes`; blocks and lists of files are blobs, named by their content.

A commit writes the list first and moves the volume's head last, by one compare-and-set. If somebody else was faster,
the changes are made again on top of theirs: different files of two commits are both there, of one file the later is.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping

from squall.errors import ConflictError, InvalidError, NotFoundError
from squall.http_api import BLOCK_BYTES, CommitVolume, VolumeFile, VolumeVersion, blob_ref, parse_blob_ref
from squall.spec import from_wire, to_wire
from squall_bus import Bus, WrongRevision
from squall_contracts.volumes import VOLUMES, VolumeHead, volume_key
from squall_gateway.blobs import Blobs
from squall_gateway.policy.volumes import Files, applied, checked_path
from squall_service.clock import Clock

TRIES = 20
MAX_CHANGES = 10_000
KNOWN_LISTS = 16
RECENT = 32
"""Commits whose requests are known when they are repeated."""


class Volumes:
    """The contents of all volumes."""

    def __init__(self, bus: Bus, blobs: Blobs, clock: Clock) -> None:
        self._bucket = bus.kv(VOLUMES)
        self._blobs = blobs
        self._clock = clock
        self._lists: OrderedDict[str, Files] = OrderedDict()

    async def files(self, workspace: str, object_id: str) -> tuple[VolumeVersion, Files]:
        """The present version and its files."""
        head, _ = await self._head(workspace, object_id)
        return version_of(head), await self._list(head)

    async def file(self, workspace: str, object_id: str, path: str) -> VolumeFile:
        """One file. Raises `NotFoundError`."""
        _, files = await self.files(workspace, object_id)
        found = files.get(checked_path(path))
        if found is None:
            raise NotFoundError(f"there is no file {path!r}")
        return found

    async def commit(self, workspace: str, object_id: str, wanted: CommitVolume) -> VolumeVersion:
        """Make all changes, or none. Raises what is wrong with one, and `ConflictError` for another version than the
        expected one."""
        if len(wanted.changes) > MAX_CHANGES:
            raise InvalidError(f"a commit can have {MAX_CHANGES} changes", fix="Make several.")
        await self._require_blocks(wanted)
        for _ in range(TRIES):
            head, revision = await self._head(workspace, object_id)
            if wanted.request and any(request == wanted.request for request, _ in head.recent):
                return version_of(head)  # the answer to this very request was lost on its way
            if wanted.expect is not None and wanted.expect != head.version:
                raise ConflictError(f"the volume is at version {head.version}, not {wanted.expect}")
            # Thousands of changes of a large volume take a while, and others are waiting for this process.
            files = await asyncio.to_thread(applied, await self._list(head), wanted.changes)
            manifest = await self._store(files)
            moved = VolumeHead(
                volume_id=object_id,
                version=head.version + 1,
                manifest=manifest,
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

    async def clear(self, workspace: str, object_id: str) -> None:
        """The volume is gone."""
        await self._bucket.delete(volume_key(workspace, object_id))

    async def _head(self, workspace: str, object_id: str) -> tuple[VolumeHead, int]:
        entry = await self._bucket.get(volume_key(workspace, object_id), from_leader=True)
        if entry is None:
            return VolumeHead(object_id, 0, "", 0, 0, 0.0), 0
        return VolumeHead.decode(entry.value), entry.revision

    async def _require_blocks(self, wanted: CommitVolume) -> None:
        """A version never names a block that is not there."""
        for change in wanted.changes:
            if change.file is None:
                continue
            file, left = change.file, change.file.size
            if left < 0 or len(file.blocks) != -(-left // BLOCK_BYTES):
                raise InvalidError(f"{change.path}: {len(file.blocks)} blocks cannot be a file of {file.size} bytes")
            for block in file.blocks:
                await self._blobs.require(block, min(left, BLOCK_BYTES))
                left -= BLOCK_BYTES

    async def _list(self, head: VolumeHead) -> Files:
        if not head.manifest:
            return {}
        known = self._lists.get(head.manifest)
        if known is None:
            sha256, _ = parse_blob_ref(head.manifest)
            _, chunks = await self._blobs.get(sha256)
            body = json.loads(b"".join([chunk async for chunk in chunks]))
            known = {each["path"]: from_wire(VolumeFile, each) for each in body["files"]}
            self._lists[head.manifest] = known
            if len(self._lists) > KNOWN_LISTS:
                self._lists.popitem(last=False)
        return known

    async def _store(self, files: Mapping[str, VolumeFile]) -> str:
        body = json.dumps({"files": [to_wire(files[path]) for path in sorted(files)]}, separators=(",", ":")).encode()
        sha256 = hashlib.sha256(body).hexdigest()
        await self._blobs.put(sha256, _once(body))
        return blob_ref(sha256, len(body))


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def version_of(head: VolumeHead) -> VolumeVersion:
    """What is told about a version."""
    return VolumeVersion(version=head.version, files=head.files, size=head.size, committed_at=head.committed_at)
