"""Queues: items in, items out, in order within a partition. Owns the streams of queues; items are opaque here.

Taking items is moving the partition's front behind them (`takes`); they are removed a little later, those of many takes
in one purge. Until then they are skipped by their front. What a gateway has left there when it died is removed by the
next taker, and by who finds the partition full or counts it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from squall.errors import ServiceError, SquallError
from squall.spec import digest
from squall_bus import Bus, BusError, Message, Published, PublishUnknown, Record, Stored, SubjectTaken, WrongRevision
from squall_contracts import subjects
from squall_contracts.objects import QueueItem, partition_token
from squall_contracts.topology import MAX_QUEUE_ITEMS
from squall_gateway.takes import Front, Place, Takes
from squall_service.clock import Clock
from squall_service.telemetry import log

PAUSE_S = 1.0
"""News of items is sent without a promise: at least so often a waiting request looks for itself."""
FULL_PAUSE_S = 0.1
REMOVE_AFTER_S = 0.1
"""So long after a take what was taken is removed, with what others have taken meanwhile."""
MOST_AT_ONCE = 500
RECEIPT_BYTES = 512 << 10
"""Of items that one request is given, the first one apart: its receipt is one message."""
CONTENDED_S = 10.0
"""So long a request competes with others for the front, then its client asks again."""
TAKEN_MEANWHILE = 32
KNOWN_FRONTS = 10_000
MOST_TOGETHER = 64
"""Requests that take in one write."""
TRIES_TOGETHER = 3


@dataclass(frozen=True, slots=True, eq=False)
class _Taker:
    """A request that waits for its turn to take an item."""

    request: str
    gone: asyncio.Event
    answer: asyncio.Future[list[QueueItem]]

    def give(self, items: list[QueueItem]) -> None:
        if not self.answer.done():
            self.answer.set_result(items)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Queues:
    """The contents of all queues, as one gateway sees them."""

    def __init__(self, bus: Bus, clock: Clock, start: Callable[[Coroutine[Any, Any, None], str], object]) -> None:
        self._bus = bus
        self._clock = clock
        self._start = start
        self._region = bus.topology.region
        self._stream = subjects.queues_stream(self._region)
        self._removing: set[str] = set()
        """Partitions that have taken items, which are about to be removed."""
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._users: defaultdict[str, int] = defaultdict(int)
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._takes = Takes(bus)
        self._takers: defaultdict[Place, list[_Taker]] = defaultdict(list)
        self._serving: set[Place] = set()
        self._fronts: dict[Place, Front] = {}
        """As we have moved them last. One that others have moved since is refused, and read again."""

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
        # All queues of all workspaces are one stream: by a request's own id alone, the second of two with the same one
        # would be taken for a repetition, and its items be lost.
        whose = f"{digest(subject)[:24]}.{request}"
        records = [
            Record(subject, item.encode(), None, f"{whose}.{n}" if request else None, ttl_s)
            for n, item in enumerate(items)
        ]
        stored, refused = 0, False
        while True:
            stored += await self._put(records[stored:])
            if stored == len(records):
                return stored
            removed = await self._remove_taken(_at(place), subject, await self._takes.front(_at(place)))
            if removed or not refused:  # it was not that full; or another gateway has removed some just now
                refused = True
                continue
            if self._clock.monotonic() >= until:
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

    async def take(
        self, place: tuple[str, str, str], most: int, wait_s: float, gone: asyncio.Event, request: str = ""
    ) -> list[QueueItem]:
        """Up to so many items, in order; none if there is none within that time. Nothing is taken for who is gone.
        The same request a second time is given the same."""
        subject, until = self._subject(*place), self._clock.monotonic() + wait_s
        asked, request = request, request or secrets.token_hex(8)
        at = _at(place)
        async with self._news(subject) as event:
            while True:
                event.clear()
                if most == 1:
                    taken = await self._take_with_others(at, subject, request, gone)
                else:
                    async with self._alone(subject):
                        taken = [] if gone.is_set() else await self._take(at, subject, most, request)
                if taken:
                    self._remove_taken_soon(at, subject)
                    return taken
                if asked and (given := await self._takes.given(at, asked)) is not None:
                    return given  # and nothing has come since
                asked, left_s = "", until - self._clock.monotonic()
                if left_s <= 0 or gone.is_set():
                    return []
                try:
                    async with asyncio.timeout(min(left_s, PAUSE_S)):
                        await event.wait()
                except TimeoutError:
                    pass

    async def _take_with_others(self, at: Place, subject: str, request: str, gone: asyncio.Event) -> list[QueueItem]:
        """One item, if there is one. Those who ask while a write is on its way share the next one."""
        taker = _Taker(request, gone, asyncio.get_running_loop().create_future())
        self._takers[at].append(taker)
        if at not in self._serving:
            self._serving.add(at)
            self._start(self._serve(at, subject), "gateway queue takes")
        return await taker.answer

    async def _serve(self, at: Place, subject: str) -> None:
        """Answer the takers of a partition until there are none."""
        takers, group = self._takers[at], list[_Taker]()
        try:
            while takers:
                async with self._alone(subject):
                    group = _next_group(takers)
                    await self._serve_group(at, subject, group)
        finally:
            self._serving.discard(at)
            del self._takers[at]
            for taker in (*group, *takers):
                taker.fail(ServiceError("the items of this partition could not be taken"))

    async def _serve_group(self, at: Place, subject: str, group: Sequence[_Taker]) -> None:
        unknown = False
        try:
            if len(group) > 1:
                unknown = await self._take_together(at, subject, group)
        except Exception as error:  # noqa: BLE001 — told to those who asked, and logged
            for taker in group:
                taker.fail(_told(error))
        for taker in group:
            if taker.answer.done():
                continue
            try:
                gone = taker.gone.is_set()
                taker.give([] if gone else await self._take(at, subject, 1, taker.request, unknown=unknown))
            except Exception as error:  # noqa: BLE001 — told to who asked, and logged
                taker.fail(_told(error))

    async def _take_together(self, at: Place, subject: str, group: Sequence[_Taker]) -> bool:
        """An item for each, in one write. Who is not answered by that has to take alone; whether the write may still
        be made then."""
        front = self._fronts.pop(at, None)
        for _ in range(TRIES_TOGETHER):
            if front is None:
                front, heads = await self._look(at, subject, len(group), 0)
            else:
                heads = await self._heads(subject, len(group), front.through + 1)
            fitting = _fitting(heads)
            asking = [taker for taker in group if not taker.answer.done() and not taker.gone.is_set()]
            served = list(zip(asking, fitting, strict=False))
            if served:
                given = {taker.request: [QueueItem.decode(stored.data)] for taker, stored in served}
                try:
                    front = await self._takes.take_each(at, front, served[-1][1].seq, given)
                except PublishUnknown:
                    return True
                except WrongRevision:  # others have moved the front; or one of these has its receipt from before
                    front = None
                    await self._answer_from_receipts(at, asking)
                    continue
                for taker, _ in served:
                    taker.give(given[taker.request])
            self._know(at, front)
            if len(fitting) == len(heads):  # nothing was left out for its size: there is nothing for the rest
                for taker in group:
                    taker.give([])
            return False
        return False

    async def _answer_from_receipts(self, at: Place, takers: Sequence[_Taker]) -> None:
        """Those who have taken before: their request came twice."""
        found = await asyncio.gather(*(self._takes.given(at, taker.request) for taker in takers))
        for taker, items in zip(takers, found, strict=True):
            if items is not None:
                taker.give(items)

    async def _take(
        self, at: Place, subject: str, most: int, request: str, *, unknown: bool = False
    ) -> list[QueueItem]:
        """Everybody takes from the front: whoever moves it has what lies between. `unknown`: a write for this request
        was made before, and has no answer."""
        if unknown and (given := await self._takes.given(at, request)) is not None:
            return given
        front, after, until = self._fronts.pop(at, None), 0, self._clock.monotonic() + CONTENDED_S
        looked = False
        while self._clock.monotonic() < until:
            if front is None:
                front, heads = await self._look(at, subject, most, after)
            else:
                heads = await self._heads(subject, most, front.through + 1)
            heads, after = _fitting(heads), front.through
            if not heads:
                self._know(at, front)
                # A write without an answer may have taken the last ones after we had looked.
                return (await self._takes.given(at, request) or []) if unknown else []
            items = [QueueItem.decode(stored.data) for stored in heads]
            try:
                self._know(at, await self._takes.take(at, front, heads[-1].seq, request, items))
            except (WrongRevision, PublishUnknown) as error:
                # A refusal says that this request has a receipt from before, or none at all; without an answer it may
                # still get one.
                unknown = unknown or isinstance(error, PublishUnknown)
                if not looked or unknown:
                    looked = True
                    if (given := await self._takes.given(at, request)) is not None:
                        return given
                front = None
                continue
            return items
        raise ServiceError("others took from the partition at the same time, again and again")

    async def _look(self, at: Place, subject: str, most: int, after: int) -> tuple[Front, Sequence[Stored]]:
        """The front and what lies behind it, in one round trip: a gateway that needs two never wins against one that
        has just moved the front itself."""
        front, found = await asyncio.gather(
            self._takes.front(at), self._heads(subject, most + TAKEN_MEANWHILE, after + 1)
        )
        heads = [stored for stored in found if stored.seq > front.through][:most]
        return front, heads or await self._heads(subject, most, front.through + 1)

    def _know(self, at: Place, front: Front) -> None:
        self._fronts[at] = front
        if len(self._fronts) > KNOWN_FRONTS:
            self._fronts.pop(next(iter(self._fronts)))

    def _remove_taken_soon(self, at: Place, subject: str) -> None:
        if subject not in self._removing:
            self._removing.add(subject)
            self._start(self._remove_taken_later(at, subject), "gateway queue removal")

    async def _remove_taken_later(self, at: Place, subject: str) -> None:
        try:
            await self._clock.sleep(REMOVE_AFTER_S)
        finally:
            self._removing.discard(subject)
        try:
            await self._remove_taken(at, subject, self._fronts.get(at) or await self._takes.front(at))
        except BusError as error:  # whoever comes next does it: nobody is given these items any more
            log.debug("queue_items_left", subject=subject, error=error)

    async def _remove_taken(self, at: Place, subject: str, front: Front) -> int:
        """What lies before the front; how many that were."""
        if not front.through:
            return 0
        return await self._bus.purge(self._stream, subject, below_seq=front.through + 1)

    async def _heads(self, subject: str, number: int, start_seq: int) -> list[Stored]:
        found: list[Stored] = []
        page = min(number, MOST_AT_ONCE)
        async for stored in self._bus.read(self._stream, subject, start_seq=start_seq, page=page):
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
        front = await self._takes.front(_at(place))
        async for stored in self._bus.read(
            self._stream, self._subject(*place), start_seq=max(after, front.through) + 1
        ):
            found.append(stored)
            if len(found) >= most and stored.pending:
                return found, stored.seq
        return found, 0

    async def count(self, workspace: str, object_id: str, partition: str | None) -> int:
        """How many items a partition has, or all of them."""
        wanted = f"{self._queue(workspace, object_id)}.*"
        if partition is not None:
            wanted = self._subject(workspace, object_id, partition)
        present = (await self._bus.stream_info(self._stream, wanted)).subjects
        places = {subject: Place(workspace, object_id, subject.rpartition(".")[2]) for subject in present}
        fronts = await asyncio.gather(*(self._takes.front(place) for place in places.values()))
        if not any(front.through for front in fronts):
            return sum(present.values())
        for (subject, place), front in zip(places.items(), fronts, strict=True):
            await self._remove_taken(place, subject, front)
        return sum((await self._bus.stream_info(self._stream, wanted)).subjects.values())

    async def clear(self, workspace: str, object_id: str, partition: str | None = None) -> None:
        """Remove the items of a partition, or of all."""
        wanted = f"{self._queue(workspace, object_id)}.*"
        if partition is not None:
            wanted = self._subject(workspace, object_id, partition)
        await self._bus.purge(self._stream, wanted)

    async def remove(self, workspace: str, object_id: str) -> None:
        """The queue is gone."""
        await self.clear(workspace, object_id)
        await self._takes.forget(workspace, object_id)

    def _queue(self, workspace: str, object_id: str) -> str:
        return f"queues.{self._region}.{workspace}.{object_id}"

    def _subject(self, workspace: str, object_id: str, partition: str) -> str:
        return subjects.queue_items(self._region, workspace, object_id, partition_token(partition))


def _at(place: tuple[str, str, str]) -> Place:
    workspace, object_id, partition = place
    return Place(workspace, object_id, partition_token(partition))


def _told(error: Exception) -> Exception:
    """What the takers hear. One that nobody has promised must not end the task, and with it the gateway."""
    if isinstance(error, SquallError):
        return error
    log.error("queue_take_failed", error=error)
    return ServiceError("the items of this partition could not be taken")


def _next_group(takers: list[_Taker]) -> list[_Taker]:
    """Those who are served next, out of the list. A request that came twice has one receipt: its second one waits."""
    group: dict[str, _Taker] = {}
    for taker in takers[:MOST_TOGETHER]:
        group.setdefault(taker.request, taker)
    chosen = list(group.values())
    takers[:] = [taker for taker in takers if group.get(taker.request) is not taker]
    return chosen


def _fitting(heads: Sequence[Stored]) -> Sequence[Stored]:
    """As many as one receipt has room for."""
    size = 0
    for number, stored in enumerate(heads):
        size += len(stored.data)
        if number and size > RECEIPT_BYTES:
            return heads[:number]
    return heads


def _stored_before_the_first_refusal(outcomes: Sequence[Published | BusError]) -> int:
    """How many were stored, in order. Raises what else than a full partition kept one out."""
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, SubjectTaken):
            return number
        if not isinstance(outcome, Published):
            raise outcome
    return len(outcomes)
