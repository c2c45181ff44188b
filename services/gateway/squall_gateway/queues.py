"""Queues: items in, items out, in order within a partition. Owns the streams of queues; items are opaque here.

Taking items is removing everything up to the last of them: the server tells each of any number of takers how many it
removed. An item whose taker dies before it has the answer is lost; the how-to says so.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from squall_bus import Bus, BusError, Message, Published, Record, Stored, SubjectTaken
from squall_contracts import subjects
from squall_contracts.objects import QueueItem, partition_token
from squall_contracts.topology import MAX_QUEUE_ITEMS
from squall_service.clock import Clock

PAUSE_S = 1.0
"""News of items is sent without a promise: at least so often a waiting request looks for itself."""
FULL_PAUSE_S = 0.1
MOST_AT_ONCE = 500


class Queues:
    """The contents of all queues, as one gateway sees them."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._region = bus.topology.region
        self._stream = subjects.queues_stream(self._region)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._users: defaultdict[str, int] = defaultdict(int)
        self._waiting: dict[str, set[asyncio.Event]] = {}

    async def listen(self) -> None:
        """Hear of items that are put, here or at other gateways."""
        await self._bus.subscribe(subjects.queued(self._region), self._on_queued)

    def _on_queued(self, message: Message) -> None:
        for event in self._waiting.get(message.subject.partition(".")[2], ()):
            event.set()

    # ------------------------------------------------------------------ in

    async def put(
        self,
        place: tuple[str, str, str],
        items: Sequence[QueueItem],
        *,
        ttl_s: float,
        wait_s: float,
        request: str,
    ) -> int:
        """Store items in order; how many there was room for within that time."""
        subject, until = self._subject(*place), self._clock.monotonic() + wait_s
        records = [
            Record(subject, item.encode(), None, f"{request}.{n}" if request else None, ttl_s)
            for n, item in enumerate(items)
        ]
        stored = 0
        while True:
            stored += await self._put(records[stored:])
            if stored == len(records) or self._clock.monotonic() >= until:
                return stored
            await self._clock.sleep(FULL_PAUSE_S)

    async def _put(self, records: list[Record]) -> int:
        """As many of them as there is room for: all in one write, or one after the other while there is."""
        if len(records) > 1:
            present = (await self._bus.stream_info(self._stream, records[0].subject)).subjects
            if sum(present.values()) + len(records) > MAX_QUEUE_ITEMS:
                return await self._put_singly(records)
        outcomes = await self._bus.publish_batch(records)
        return _stored_before_the_first_refusal(outcomes)

    async def _put_singly(self, records: list[Record]) -> int:
        for number, record in enumerate(records):
            if not _stored_before_the_first_refusal(await self._bus.publish_batch([record])):
                return number
        return len(records)

    # ------------------------------------------------------------------ out

    async def take(self, place: tuple[str, str, str], most: int, wait_s: float, gone: asyncio.Event) -> list[Stored]:
        """Up to so many items, in order; none if there is none within that time. Nothing is taken for who is gone."""
        subject, until = self._subject(*place), self._clock.monotonic() + wait_s
        async with self._news(subject) as event:
            while True:
                event.clear()
                async with self._alone(subject):
                    taken = [] if gone.is_set() else await self._take(subject, most)
                left_s = until - self._clock.monotonic()
                if taken or left_s <= 0 or gone.is_set():
                    return taken
                try:
                    async with asyncio.timeout(min(left_s, PAUSE_S)):
                        await event.wait()
                except TimeoutError:
                    pass

    async def _take(self, subject: str, most: int) -> list[Stored]:
        """Everybody takes from the front: of items that were there when we looked, others can only have had the first,
        so that as many of the last as we have removed are ours."""
        heads = await self._heads(subject, most)
        if not heads:
            return []
        removed = await self._bus.purge(self._stream, subject, below_seq=heads[-1].seq + 1)
        return heads[len(heads) - min(removed, len(heads)) :]

    async def _heads(self, subject: str, number: int) -> list[Stored]:
        found: list[Stored] = []
        async for stored in self._bus.read(self._stream, subject, page=min(number, MOST_AT_ONCE)):
            found.append(stored)
            if len(found) >= number:
                break
        return found

    @asynccontextmanager
    async def _news(self, subject: str) -> AsyncIterator[asyncio.Event]:
        event, place = asyncio.Event(), subject.partition(".")[2]
        self._waiting.setdefault(place, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[place].discard(event)
            if not self._waiting[place]:
                del self._waiting[place]

    @asynccontextmanager
    async def _alone(self, subject: str) -> AsyncIterator[None]:
        """Takers at one gateway go one after the other, instead of racing for the same item."""
        self._users[subject] += 1
        try:
            async with self._locks[subject]:
                yield
        finally:
            self._users[subject] -= 1
            if not self._users[subject]:
                del self._users[subject], self._locks[subject]

    # ------------------------------------------------------------------ looking

    async def page(self, place: tuple[str, str, str], after: int, most: int) -> tuple[list[Stored], int]:
        """Items from a position on, without taking them; where to go on (0 = that was all)."""
        found: list[Stored] = []
        async for stored in self._bus.read(self._stream, self._subject(*place), start_seq=after + 1):
            found.append(stored)
            if len(found) >= most and stored.pending:
                return found, stored.seq
        return found, 0

    async def count(self, workspace: str, object_id: str, partition: str | None) -> int:
        """How many items a partition has, or all of them."""
        wanted = f"{self._queue(workspace, object_id)}.*"
        if partition is not None:
            wanted = self._subject(workspace, object_id, partition)
        return sum((await self._bus.stream_info(self._stream, wanted)).subjects.values())

    async def clear(self, workspace: str, object_id: str, partition: str | None = None) -> None:
        """Remove the items of a partition, or of all."""
        wanted = f"{self._queue(workspace, object_id)}.*"
        if partition is not None:
            wanted = self._subject(workspace, object_id, partition)
        await self._bus.purge(self._stream, wanted)

    def _queue(self, workspace: str, object_id: str) -> str:
        return f"queues.{self._region}.{workspace}.{object_id}"

    def _subject(self, workspace: str, object_id: str, partition: str) -> str:
        return subjects.queue_items(self._region, workspace, object_id, partition_token(partition))


def _stored_before_the_first_refusal(outcomes: Sequence[Published | BusError]) -> int:
    """How many were stored, in order. Raises what else than a full partition kept one out."""
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, SubjectTaken):
            return number
        if not isinstance(outcome, Published):
            raise outcome
    return len(outcomes)
