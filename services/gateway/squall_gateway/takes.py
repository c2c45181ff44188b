"""Takes: how far each partition of a queue is taken, and what was given to whom. Owns the bucket `takes`.

A take is one write: the partition's front moves on by compare-and-set, together with the receipt of the request, or of
each of several requests that take at the same time. Who
asks again with the same id, because the answer was lost on its way, gets what the receipt says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from squall_bus import Bus, KeyWrite
from squall_contracts import subjects
from squall_contracts.objects import RECEIPT_S, TAKES, QueueFront, QueueItem, QueueTake, front_key, receipt_key

KEPT_S = 8 * 24 * 3600.0
"""Of a front: longer than any item. One that nobody has moved since has nothing before it that is still there."""


class Place(NamedTuple):
    """A partition of a queue."""

    workspace: str
    object_id: str
    token: str


class Front(NamedTuple):
    """How far a partition is taken."""

    through: int
    revision: int


class Takes:
    """What is taken, as one gateway sees it."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._bucket = bus.kv(TAKES)

    async def front(self, place: Place) -> Front:
        """As its leader knows it."""
        entry = await self._bucket.get(front_key(*place), from_leader=True)
        return Front(0, 0) if entry is None else Front(QueueFront.decode(entry.value).through, entry.revision)

    async def given(self, place: Place, request: str) -> list[QueueItem] | None:
        """What a request was given; None when it has taken nothing."""
        entry = await self._bucket.get(receipt_key(place.workspace, place.object_id, request), from_leader=True)
        if entry is None:
            return None
        take = QueueTake.decode(entry.value)
        return [QueueItem(value, blob) for value, blob in zip(take.values, take.blobs, strict=True)]

    async def take(self, place: Place, front: Front, through: int, request: str, items: Sequence[QueueItem]) -> Front:
        """These items, the last of which is `through`, are the request's; the new front. Raises `WrongRevision` when
        somebody else has taken some since `front` was read, or this request has its receipt; `PublishUnknown`."""
        return await self.take_each(place, front, through, {request: items})

    async def take_each(
        self, place: Place, front: Front, through: int, given: Mapping[str, Sequence[QueueItem]]
    ) -> Front:
        """The same for several requests in one write: all of them have theirs, or none."""
        writes = [KeyWrite(front_key(*place), QueueFront(through).encode(), front.revision, KEPT_S)]
        for request, items in given.items():
            take = QueueTake([item.value for item in items], [item.blob for item in items])
            key = receipt_key(place.workspace, place.object_id, request)
            writes.append(KeyWrite(key, take.encode(), 0, RECEIPT_S))
        revision, *_ = await self._bucket.write_together(writes)
        return Front(through, revision)

    async def forget(self, workspace: str, object_id: str) -> None:
        """The queue is gone. Its receipts go by themselves."""
        wanted = subjects.kv_subject(TAKES, front_key(workspace, object_id, "*"))
        await self._bus.purge(subjects.kv_stream(TAKES), wanted)
