"""Removes blocks of volumes that no version needs any more. Never one that is needed, whoever dies or pauses meanwhile.

What may go is condemned first, in the bucket: from then on no commit relies on it. Then every head of the workspace is
written again as it is, so that a commit which has not seen what is condemned cannot move it any more. What the heads
name now is needed; the rest of what is condemned is removed, unless somebody stored it again meanwhile. No clock
decides that. The store's clock only says how long readers of older versions, and uploads without a commit, have time.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from squall.errors import ConflictError, ServiceError, SquallError
from squall.http_api.protocol import parse_blob_ref
from squall.http_api.storage import CollectedBlocks
from squall_bus import Bus, KeyExists, WrongRevision
from squall_contracts.objects import OBJECTS, object_id_key
from squall_contracts.volumes import VOLUMES, CondemnedBlocks, VolumeHead, condemned_key, is_head
from squall_gateway.policy.volume_lists import named_in
from squall_gateway.volume_blocks import Block, Room, Rooms
from squall_service.clock import Clock
from squall_service.telemetry import log

SWEEP_S = 300.0
"""No block is removed later than this after it was condemned."""
CONDEMNED_S = 900.0
"""How long what is condemned stays so if its collector dies: until then nothing that it began can still happen."""
REMOVE_S = 60.0
BATCH = 500
"""Blocks that are condemned at once: their names are read again before each is removed."""
LOOK_EVERY_S = 0.1
UNNEEDED = "unneeded.json"
"""Since when each block has been needed by nothing, as collectors saw it."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What there is to do for one workspace."""

    needed: dict[str, Block]
    unneeded: dict[str, Block]
    ripe: dict[str, Block]
    """Of these: old, and unneeded for long enough."""
    lists: Collection[str]
    """The lists that name what is needed."""
    note: bytes
    """Since when each of these has been unneeded, for the next look."""


@dataclass(frozen=True, slots=True)
class Collector:
    """Collects in all workspaces, or in one."""

    bus: Bus
    rooms: Rooms
    clock: Clock

    async def tick(self) -> None:
        """Everywhere."""
        for workspace in await self.rooms.workspaces():
            try:
                done = await self.collect(workspace, dry_run=False)
            except (SquallError, OSError) as error:  # of one workspace; the others have nothing to do with it
                log.warning("volume_blocks_not_collected", workspace=workspace, reason=str(error))
                continue
            if done.removed:
                log.info("volume_blocks_collected", workspace=workspace, blocks=done.removed, bytes=done.removed_bytes)

    async def collect(self, workspace: str, *, dry_run: bool) -> CollectedBlocks:
        """Remove what is not needed. Raises `ConflictError` if others store blocks here too, `NotFoundError` or
        `DataLossError` if a list cannot be read: then it is not known what is needed."""
        room = self.rooms.of(workspace)
        await _check_users(room)
        found = await self._look(room, dry_run)
        removed, is_complete = dict(found.ripe), True
        if not dry_run:
            removed, is_complete = await self._sweep(room, found)
        waiting = [block for name, block in found.unneeded.items() if name not in removed]
        return CollectedBlocks(
            dry_run=dry_run,
            removed=len(removed),
            removed_bytes=_bytes(removed.values()),
            waiting=len(waiting),
            waiting_bytes=_bytes(waiting),
            needed=len(found.needed),
            needed_bytes=_bytes(found.needed.values()),
            is_complete=is_complete,
        )

    async def _look(self, room: Room, dry_run: bool) -> _Found:
        now = await room.store.time()
        blocks = await room.store.all()
        # Nothing is removed because of this look: it may miss what was written just now.
        entries = await self.bus.kv(VOLUMES).entries(f"{room.workspace}.")
        heads = [VolumeHead.decode(entry.value) for entry in entries if is_head(entry.key)]
        heads = [head for head in heads if not await self._is_gone(room, head.volume_id)]
        lists = _lists_of(heads)
        needed = await self._needed(room, lists)
        note = await room.store.note(UNNEEDED)
        # In a thread: a million blocks take seconds, and others are waiting for this process.
        found = await asyncio.to_thread(_sorted_out, blocks, needed, lists, note, now, room.grace)
        if not dry_run:
            await room.store.write_note(UNNEEDED, found.note)
        return found

    # ------------------------------------------------------------------ removing

    async def _sweep(self, room: Room, found: _Found) -> tuple[dict[str, Block], bool]:
        """What was removed, and whether that was all that should be."""
        removed: dict[str, Block] = {}
        names = sorted(found.ripe)
        for first in range(0, len(names), BATCH):
            if not await self._sweep_some(room, names[first : first + BATCH], removed, found):
                return removed, False
        return removed, True

    async def _sweep_some(self, room: Room, names: Sequence[str], removed: dict[str, Block], before: _Found) -> bool:
        key, deadline = condemned_key(room.workspace), _now() + SWEEP_S
        bucket, now = self.bus.kv(VOLUMES), await room.store.time()
        try:
            revision = await bucket.create(key, CondemnedBlocks(blocks=list(names)).encode(), CONDEMNED_S)
        except KeyExists:  # another collector is at it, or died
            return False
        heads = await self._moved_heads(room, revision, deadline)
        needed = await self._needed(room, _lists_of(heads) - set(before.lists))  # what those name is not ripe
        for name in names:
            # Stored again, or asked for, since: whoever does that from here on sees that it is condemned.
            found = await room.store.stat(name)
            if name in needed or found is None or now - found.modified < room.grace:
                continue
            # Each time: of its own clock a machine that stood still may know nothing, and the bus has one, too. What is
            # condemned expires; a delayed step of ours may still be under way then.
            if not await self._is_condemned(key, revision) or _now() >= deadline:
                return False
            await _removed(room, name)
            removed[name] = before.ripe[name]
        await bucket.delete(key, revision)
        return True

    async def _is_condemned(self, key: str, revision: int) -> bool:
        entry = await self.bus.kv(VOLUMES).get(key, from_leader=True)
        return entry is not None and entry.revision == revision

    async def _moved_heads(self, room: Room, revision: int, deadline: float) -> list[VolumeHead]:
        """All heads, after every commit that has not seen what is condemned is made, or can no longer be."""
        heads = [await self._moved(room, key) for key in await self._head_keys(room, revision, deadline)]
        return [head for head in heads if head is not None]

    async def _head_keys(self, room: Room, revision: int, deadline: float) -> list[str]:
        """Those that were there when the blocks were condemned: a copy of the bucket that has this, has them."""
        key = condemned_key(room.workspace)
        while _now() < deadline:
            entries = await self.bus.kv(VOLUMES).entries(f"{room.workspace}.")
            if any(entry.key == key and entry.revision >= revision for entry in entries):
                return [entry.key for entry in entries if is_head(entry.key)]
            await self.clock.sleep(LOOK_EVERY_S)
        raise ConflictError("the bus does not show what was written to it", fix="Try again later.")

    async def _moved(self, room: Room, key: str) -> VolumeHead | None:
        """The head, written again as it is; of a volume that is gone it is removed."""
        bucket = self.bus.kv(VOLUMES)
        while True:
            entry = await bucket.get(key, from_leader=True)
            if entry is None:
                return None
            head = VolumeHead.decode(entry.value)
            is_gone = await self._is_gone(room, head.volume_id)
            try:
                if is_gone:
                    await bucket.delete(key, entry.revision)
                    return None
                await bucket.update(key, entry.value, entry.revision)
            except WrongRevision:
                continue
            return head

    async def _is_gone(self, room: Room, volume: str) -> bool:
        """Nobody can ask for it any more: it was deleted, or had no name and was not renewed."""
        return await self.bus.kv(OBJECTS).get(object_id_key(room.workspace, volume), from_leader=True) is None

    async def _needed(self, room: Room, lists: Collection[str]) -> set[str]:
        needed: set[str] = set()
        for manifest in lists:
            sha256, _ = parse_blob_ref(manifest)
            body = await self.rooms.read(room.workspace, sha256)
            needed.add(sha256)
            needed |= await asyncio.to_thread(named_in, body)
        return needed


def _lists_of(heads: Collection[VolumeHead]) -> set[str]:
    return {head.manifest for head in heads if head.manifest}


async def _removed(room: Room, name: str) -> None:
    try:
        async with asyncio.timeout(REMOVE_S):
            await room.store.remove(name)
    except TimeoutError:  # what is condemned stays so until it expires: the store may still remove it
        raise ServiceError("the blob store takes too long to remove a block", fix="Try again later.") from None


async def _check_users(room: Room) -> None:
    others = await room.store.users() - {await room.user(anew=True)}
    if others:
        raise ConflictError(
            f"the blob store has blocks of workspace {room.workspace!r} from another bus, or from this one before it "
            "lost its data: what is needed there is not known here, so nothing is removed",
            fix=f"Give each deployment a store of its own. If the other one is gone for good, remove "
            f"volumes/{room.workspace}/users/{min(others)} from the store.",
        )


def _sorted_out(
    blocks: Mapping[str, Block],
    needed: Collection[str],
    lists: Collection[str],
    note: bytes,
    now: datetime,
    grace: timedelta,
) -> _Found:
    unneeded = {name: block for name, block in blocks.items() if name not in needed}
    since = _since(note, now, unneeded)
    ripe = {
        name: block for name, block in unneeded.items() if now - block.modified >= grace and now - since[name] >= grace
    }
    kept = {name: block for name, block in blocks.items() if name in needed}
    noted = json.dumps({name: when.timestamp() for name, when in since.items()})
    return _Found(kept, unneeded, ripe, lists, noted.encode())


def _since(note: bytes, now: datetime, unneeded: Collection[str]) -> dict[str, datetime]:
    try:
        known = json.loads(note or b"{}")
    except ValueError:  # cut off by a power cut: they wait for a whole period again
        known = {}
    return {name: datetime.fromtimestamp(known[name], now.tzinfo) if name in known else now for name in unneeded}


def _now() -> float:
    """Goes on while the machine sleeps, and does not jump."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _bytes(blocks: Collection[Block]) -> int:
    return sum(block.size for block in blocks)
