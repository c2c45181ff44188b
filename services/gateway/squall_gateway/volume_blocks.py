"""Blocks and lists of volumes: each workspace has a place of its own in the blob store, where nothing else lies.

What is stored or asked for here stays for at least the grace period, by the store's own clock. What a collector is
about to remove (`collecting`) does not count as there; whoever stores it waits until that is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

import obstore

from squall.errors import DataLossError, InvalidError, NotFoundError, ServiceError
from squall.http_api.protocol import parse_blob_ref
from squall_bus import Bus, KeyExists
from squall_contracts.volumes import (
    MAX_LIST_BYTES,
    STORE_USER,
    VOLUMES,
    CondemnedBlocks,
    VolumeHead,
    condemned_key,
    is_head,
)
from squall_gateway.blobs import Blobs, check_sha256, in_our_words
from squall_gateway.policy.volume_lists import named_in, sizes_of
from squall_gateway.policy.volumes import Files
from squall_service.clock import Clock

ASKED_AT_ONCE = 64
"""Of a store that answers in 10 ms, one by one, thousands of blocks would take longer than clients wait."""
CLOCK_S = 600.0
"""The store is asked for its time again after this."""
LOOKS, LOOK_EVERY_S = 100, 0.1
_BLOCK = re.compile(r"[0-9a-f]{2}/([0-9a-f]{64})")
_WORKSPACE = re.compile(r"[-_A-Za-z0-9]+")
PREFIX = "volumes"


@dataclass(frozen=True, slots=True)
class Block:
    """A block, as the store has it."""

    size: int
    modified: datetime


class BlockStore(Blobs):
    """A store of blocks: what is in it can be looked at, renewed and removed."""

    async def stat(self, sha256: str) -> Block | None:
        """As it is now: never out of memory."""
        if self._folder is not None:
            return await asyncio.to_thread(self._stat_here, sha256)
        try:
            with in_our_words():
                meta = await obstore.head_async(self._store, self._path(sha256))
        except FileNotFoundError:
            return None
        return Block(meta["size"], meta["last_modified"])

    async def stats(self, names: Collection[str]) -> dict[str, Block]:
        """Of those that are there."""
        wanted = sorted(names)
        if self._folder is not None:
            looked = await asyncio.to_thread(lambda: [self._stat_here(name) for name in wanted])
        else:
            looked = []
            for first in range(0, len(wanted), ASKED_AT_ONCE):
                looked += await self._stats_there(wanted[first : first + ASKED_AT_ONCE])
        return {name: block for name, block in zip(wanted, looked, strict=True) if block is not None}

    async def _stats_there(self, names: list[str]) -> list[Block | None]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.stat(name)) for name in names]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures
        return [task.result() for task in tasks]

    def _stat_here(self, sha256: str) -> Block | None:
        assert self._folder is not None
        try:
            found = (self._folder / self._path(sha256)).stat()
        except FileNotFoundError:
            return None
        return Block(found.st_size, datetime.fromtimestamp(found.st_mtime).astimezone())

    async def renew(self, sha256: str) -> bool:
        """It is as new as if it were stored now; False if it is not there."""
        if self._folder is not None:
            try:
                await asyncio.to_thread(os.utime, self._folder / self._path(sha256))
            except FileNotFoundError:
                return False
            return True
        try:  # read and written: stores refuse to copy an object to itself, each in its way
            content = await self.read(sha256)
        except NotFoundError:
            return False
        await self.put(sha256, once(content))
        return True

    async def all(self) -> dict[str, Block]:
        """Everything that is there."""
        found: dict[str, Block] = {}
        with in_our_words():
            async for metas in obstore.list(self._store):
                for meta in metas:
                    if block := _BLOCK.fullmatch(meta["path"]):
                        found[block[1]] = Block(meta["size"], meta["last_modified"])
        return found

    async def remove(self, sha256: str) -> None:
        """It may be gone already."""
        try:
            with in_our_words():
                await obstore.delete_async(self._store, self._path(sha256))
        except FileNotFoundError:
            pass

    async def note(self, name: str) -> bytes:
        """What a collector wrote down; empty: nothing."""
        try:
            with in_our_words():
                found = await obstore.get_async(self._store, f"notes/{name}")
                return bytes(await found.bytes_async())
        except FileNotFoundError:
            return b""

    async def users(self) -> set[str]:
        """Whoever said that it stores blocks here."""
        with in_our_words():
            metas = [meta async for part in obstore.list(self._store, "users/") for meta in part]
        return {meta["path"].rpartition("/")[2] for meta in metas}

    async def say_used_by(self, user: str) -> None:
        """For `users`."""
        with in_our_words():
            await obstore.put_async(self._store, f"users/{user}", b"-")

    async def write_note(self, name: str, content: bytes) -> None:
        """Whole, or not at all."""
        with in_our_words():
            await obstore.put_async(self._store, f"notes/{name}", content)

    async def time(self) -> datetime:
        """By the clock that the times of blocks are of. Nothing is removed for it: commits ask, and keys of a store may
        be such that they remove nothing."""
        with in_our_words():
            await obstore.put_async(self._store, "notes/clock", b"-")
            return (await obstore.head_async(self._store, "notes/clock"))["last_modified"]


class Room:
    """The blocks of one workspace, and the promise that they stay."""

    def __init__(self, workspace: str, store: BlockStore, bus: Bus, clock: Clock, grace_s: float) -> None:
        self.workspace = workspace
        self.store = store
        self.grace = timedelta(seconds=grace_s)
        self._bucket = bus.kv(VOLUMES)
        self._clock = clock
        self._time: tuple[float, datetime] | None = None
        self._user = ""

    async def put(self, sha256: str, chunks: AsyncIterator[bytes]) -> int:
        """Store a block; its size. Raises what `Blobs.put` does."""
        await self.user()
        size = await self.store.put(sha256, chunks)
        if not await self._is_quiet():
            await self._outlives(sha256)
        return size

    async def _outlives(self, sha256: str) -> None:
        """A collector may have chosen it before it was stored again. It looks once more, or has looked already."""
        for _ in range(LOOKS):
            if sha256 not in await self.condemned():
                if await self.store.stat(sha256) is not None:  # in this order: what was under way has ended
                    return
                break
            await self._clock.sleep(LOOK_EVERY_S)
        raise _busy(sha256)

    async def offered(self, sha256: str) -> int | None:
        """Bytes of a block that need not be stored again; None: it has to be."""
        found = await self.store.stat(check_sha256(sha256))
        if found is None or not await self._kept(sha256, found):
            return None
        if not await self._is_quiet():  # as in `_outlives`
            found = None if sha256 in await self.condemned() else await self.store.stat(sha256)
        return None if found is None else found.size

    async def _is_quiet(self) -> bool:
        """Nothing is condemned, nor was for minutes: so long the bus keeps the mark of a removed key."""
        return await self._bucket.revision(condemned_key(self.workspace)) == (0, False)

    async def require(self, sizes: Mapping[str, int], present: Files) -> None:
        """Raises `InvalidError` unless all these blocks are stored, or in the version that is changed (`present`), and
        `ServiceError` if one is being removed. True for a commit on a head that was read before this was called."""
        await self.user()
        # In this order. A collector condemns, then moves all heads, then removes: whoever has read the head before
        # either sees here what is condemned (or removed), or fails to move the head.
        if not (await self.condemned()).isdisjoint(sizes):
            raise _busy(next(iter(sizes)))
        found = await self.store.stats(sizes)
        # Versions of an older gateway have their blocks elsewhere.
        there = await asyncio.to_thread(sizes_of, present.values()) if len(found) < len(sizes) else {}
        for sha256, size in sizes.items():
            has = found[sha256].size if sha256 in found else there.get(sha256)
            if has is None:
                raise InvalidError(
                    f"block {sha256} is not there",
                    fix="Upload it with PUT /v1/volume-blocks/<sha256> first; a squall that does not is too old.",
                )
            if has != size:
                raise InvalidError(f"block {sha256} has {has} bytes, the file says {size}")
        for sha256, block in found.items():
            # A little is enough, and after an upload of half a day many would have to be read and written.
            if not await self._kept(sha256, block, 1 / 8):
                raise _busy(sha256)

    async def _kept(self, sha256: str, block: Block, left: float = 1 / 2) -> bool:
        """So much of the grace period is left from here on; False: it is gone."""
        return await self._now() - block.modified < self.grace * (1 - left) or await self.store.renew(sha256)

    async def _now(self) -> datetime:
        here = self._clock.monotonic()
        if self._time is None or here - self._time[0] > CLOCK_S:
            self._time = (here, await self.store.time())
        return self._time[1] + timedelta(seconds=here - self._time[0])

    async def user(self, *, anew: bool = False) -> str:
        """A name for this bus, which is known in the store before anything else is stored: what versions on another bus
        need would be garbage for this one's collector. `anew`: it may be another bus by now."""
        if anew or not self._user:
            with contextlib.suppress(KeyExists):
                await self._bucket.create(STORE_USER, uuid4().hex.encode())
            entry = await self._bucket.get(STORE_USER, from_leader=True)
            assert entry is not None, "it is never removed"
            await self.store.say_used_by(entry.value.decode())
            self._user = entry.value.decode()
        return self._user

    async def condemned(self) -> frozenset[str]:
        """What a collector may remove at this moment."""
        entry = await self._bucket.get(condemned_key(self.workspace), from_leader=True)
        return frozenset() if entry is None else frozenset(CondemnedBlocks.decode(entry.value).blocks)


class Rooms:
    """Those of all workspaces."""

    def __init__(self, shared: Blobs, bus: Bus, clock: Clock, grace_s: float) -> None:
        self.shared = shared
        """Where blocks were before each workspace had a place of its own; they are read there still."""
        self._bus = bus
        self._clock = clock
        self._grace_s = grace_s
        self._rooms: dict[str, Room] = {}

    def of(self, workspace: str) -> Room:
        """A workspace's."""
        room = self._rooms.get(workspace)
        if room is None:
            if not _WORKSPACE.fullmatch(workspace):
                raise InvalidError(f"workspace {workspace!r} cannot have volumes", fix="Its name must be a plain word.")
            where, options, reserve_bytes = self.shared.within(f"{PREFIX}/{workspace}")
            store = BlockStore(where, options, MAX_LIST_BYTES, reserve_bytes=reserve_bytes)
            room = self._rooms[workspace] = Room(workspace, store, self._bus, self._clock, self._grace_s)
        return room

    async def workspaces(self) -> list[str]:
        """Those that have stored something."""
        return [name for name in await self.shared.folders(PREFIX) if _WORKSPACE.fullmatch(name)]

    async def get(self, workspace: str, sha256: str) -> tuple[int, AsyncIterator[bytes]]:
        """Size and content of a block that a version of a volume names. Raises `NotFoundError`."""
        try:
            return await self.of(workspace).store.get(sha256)
        except NotFoundError:
            return await self.shared.get(sha256)

    async def asked(self, workspace: str, sha256: str) -> tuple[int, AsyncIterator[bytes]]:
        """The same for a request: among what lies in the shared place only what volumes of the workspace consist of,
        as everybody's calls and code are there too. Raises `NotFoundError`."""
        try:
            return await self.of(workspace).store.get(sha256)
        except NotFoundError:
            if await self.shared.size(sha256) is None or not await self._is_named(workspace, sha256):
                raise
            return await self.shared.get(sha256)

    async def _is_named(self, workspace: str, sha256: str) -> bool:
        """Whether the present version of a volume of the workspace consists of it."""
        entries = await self._bus.kv(VOLUMES).entries(f"{workspace}.")
        heads = [VolumeHead.decode(entry.value) for entry in entries if is_head(entry.key)]
        lists = {parse_blob_ref(head.manifest)[0] for head in heads if head.manifest}
        if sha256 in lists:
            return True
        for manifest in lists:
            with contextlib.suppress(NotFoundError):  # of a head that was replaced meanwhile
                if sha256 in await asyncio.to_thread(named_in, await self.read(workspace, manifest)):
                    return True
        return False

    async def read(self, workspace: str, sha256: str) -> bytes:
        """The same, all of it and verified: a list with a wrong name in it would cost the block of the right one."""
        _, content = await self.get(workspace, sha256)
        body = b"".join([chunk async for chunk in content])
        found = await asyncio.to_thread(lambda: hashlib.sha256(body).hexdigest())
        if found != sha256:
            raise DataLossError(
                f"block {sha256} is damaged: it hashes to {found}", fix="Restore it from a copy of the blob store."
            )
        return body


def _busy(sha256: str) -> ServiceError:
    return ServiceError(
        f"blocks that nobody needed, {sha256[:12]} perhaps among them, are being removed at this moment",
        fix="Try again: they can be stored again as soon as they are gone.",
    )


async def once(body: bytes) -> AsyncIterator[bytes]:
    """The body in one piece."""
    yield body
