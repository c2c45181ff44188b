"""A process's connection to the simulated server: the face of `squall_bus.Bus`, and a network that delays and loses.

Messages of one connection keep their order in each direction. A broken connection loses what is under way, both ways:
what was asked may have been done. What reaches a paused process waits for it; a dead one is not spoken to.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.simulation.loop import Handle, Process, SimLoop
from tests.simulation.server import Server
from tests.simulation.streams import EXPECT, OPERATION, Interest, Kept, Pull, Watcher, stored

from squall_bus.delivery import Delivery
from squall_bus.errors import BusError, BusUnavailable, KeyExists, PublishUnknown, WrongRevision
from squall_bus.records import (
    BusStats,
    Change,
    ConsumerInfo,
    ConsumerSpec,
    Entry,
    Headers,
    Published,
    Record,
    Stored,
    StreamInfo,
)
from squall_contracts.topology import Topology

T = TypeVar("T")

ATTEMPT_S = 4.0
ASK_S = 5.0
DEADLINE_S = 15.0
GRAVE_S = 600.0
RECONNECT_S = 0.1
PULL_S = 10.0
PAUSE_S = 0.25
LONGEST_WAY_S = 1.0


@dataclass(slots=True)
class Network:
    """How messages travel in this run."""

    rng: random.Random
    slow: float = 0.0
    """Share of messages that take up to a second."""
    lost: float = 0.0
    """Share of requests or replies that get lost without a broken connection (a leader that dies, say)."""
    lost_sends: float = 0.0
    """Share of plain messages that get lost (a slow consumer, say)."""

    def takes(self) -> float:
        """Seconds on the way."""
        if self.slow and self.rng.random() < self.slow:
            return self.rng.uniform(0.05, LONGEST_WAY_S)
        return 0.0001 + 0.0007 * self.rng.random()


class SimMessage:
    """What plain subscriptions get."""

    __slots__ = ("data", "headers", "reply", "subject")

    def __init__(self, subject: str, data: bytes, headers: dict[str, str]) -> None:
        self.subject, self.data, self.headers, self.reply = subject, data, headers, ""


class SimBus:
    """One connection."""

    def __init__(self, server: Server, process: Process, network: Network, topology: Topology) -> None:
        self.server = server
        self.process = process
        self.network = network
        self.topology = topology
        self.loop: SimLoop = process.loop
        self.connected = True
        self.connected_at = server.now()
        self.stats = BusStats()
        self.clock_skew_s = 0.0
        self._epoch = 0
        self._out_at = self._in_at = 0.0
        self._on_reconnect: list[Callable[[], None]] = []
        self._on_disconnect: list[Callable[[], None]] = []
        self._waiting: dict[asyncio.Future[Any], None] = {}
        """In order: a set of futures would be in the order of their addresses."""
        self._interests: list[SimSubscription] = []
        self._pullers: list[SimPuller] = []
        self._watches: list[SimWatch] = []
        self._inboxes = 0
        self._ids = 0
        self._soon: list[Record] = []

    # ------------------------------------------------------------------ the wire

    def _out(self, work: Callable[[], None]) -> None:
        """Have the server do something when the message has arrived, if the connection holds until then."""
        self._out_at = max(self._out_at + 1e-7, self.loop._now + self.network.takes())
        self.loop.call_at(self._out_at, self._arrived_there, self._epoch, work, context=_SERVER)

    def _arrived_there(self, epoch: int, work: Callable[[], None]) -> None:
        if epoch == self._epoch and self.server.up:
            work()

    def _in(self, work: Callable[..., None], *args: object) -> None:
        """Have this process do something when the message has arrived here."""
        self._in_at = max(self._in_at + 1e-7, self.loop._now + self.network.takes())
        self.loop.call_at(self._in_at, self._arrived_here, self._epoch, work, args, context=self.process.context)

    def _arrived_here(self, epoch: int, work: Callable[..., None], args: tuple[object, ...]) -> None:
        if epoch == self._epoch:
            work(*args)

    def disconnect(self) -> None:
        """The connection breaks. What waits for an answer is told."""
        if not self.connected:
            return
        self.connected = False
        self._epoch += 1
        for interest in self._interests:
            self.server.core.drop(interest.interest)
        for watch in self._watches:
            watch.lost()
        for puller in self._pullers:
            puller.lost_at_server()
        self.process.call(self._told_lost)

    def _told_lost(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            if not future.done():
                future.set_exception(_Lost())
        for puller in self._pullers:
            puller.lost()
        for callback in list(self._on_disconnect):
            callback()

    def reconnect(self) -> None:
        """Back again, if the server is."""
        if self.connected or self.process.dead or not self.server.up:
            return
        self.connected = True
        self._epoch += 1
        for interest in self._interests:
            self.server.core.add(interest.interest)
        self.process.call(self._told_connected)

    def _told_connected(self) -> None:
        if not self.connected:
            return
        self.connected_at = self.server.now() + self.clock_skew_s
        self.stats.reconnects += 1
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            if not future.done():
                future.set_result(None)
        for puller in self._pullers:
            puller.listen()
        for watch in self._watches:
            watch.restart()
        for callback in list(self._on_reconnect):
            callback()

    async def _wait_connected(self, until: float) -> None:
        if self.connected:
            return
        future = self.loop.create_future()
        self._waiting[future] = None
        timer = self.loop.call_at(until, _fail, future)
        try:
            await future
        except _Lost:
            pass
        finally:
            timer.cancel()
            self._waiting.pop(future, None)

    async def _once(self, work: Callable[[], T], timeout_s: float) -> T:
        """One request and its answer. Raises `_Lost` when the connection broke, or nothing came in time."""
        future: asyncio.Future[T] = self.loop.create_future()
        lost = self.network.lost and self.network.rng.random() < self.network.lost
        lose_request = bool(lost) and self.network.rng.random() < 0.5

        def serve() -> None:
            if lose_request:
                return
            try:
                answer, error = work(), None
            except BusError as failure:
                answer, error = None, failure
            if lost:
                self.server.counts["lost_reply"] += 1
            else:
                self._in(_settle, future, answer, error)

        self._waiting[future] = None
        # An answer takes two ways at most, and a broken connection is told: only what gets lost runs into its time.
        timer = self.loop.call_later(timeout_s, _fail, future) if lost or timeout_s <= 2 * LONGEST_WAY_S else None
        self._out(serve)
        try:
            return await future
        finally:
            if timer is not None:
                timer.cancel()
            self._waiting.pop(future, None)

    async def ask(self, work: Callable[[], T], timeout_s: float = ASK_S) -> T:
        """A request that may be repeated, and is, until the time is up."""
        until = self.loop._now + timeout_s
        while True:
            await self._wait_connected(until)
            left = until - self.loop._now
            if left > 0 and self.connected:
                try:
                    return await self._once(work, min(left, 3.0))
                except _Lost:
                    pass
            if until - self.loop._now <= 0.01:
                raise BusUnavailable("no answer")
            await asyncio.sleep(0.02)

    # ------------------------------------------------------------------ publishing

    def _named(self, record: Record) -> Record:
        if record.msg_id is not None:
            return record
        self._ids += 1
        made = f"{self.process.name}-{id(self) % 99991}-{self._ids}"
        return Record(record.subject, record.data, record.headers, made, record.ttl_s)

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        headers: Headers | None = None,
        msg_id: str | None = None,
        ttl_s: float | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> Published:
        [outcome] = await self.publish_batch([Record(subject, data, headers, msg_id, ttl_s)], deadline_s=deadline_s)
        if isinstance(outcome, BusError):
            raise outcome
        return outcome

    async def publish_batch(
        self, records: Sequence[Record], *, deadline_s: float = DEADLINE_S
    ) -> list[Published | BusError]:
        until = self.loop._now + deadline_s
        named = [self._named(record) for record in records]
        sent = False
        while True:
            await self._wait_connected(until)
            left = until - self.loop._now
            if left > 0 and self.connected:
                again = sent
                sent = True
                try:
                    return await self._once(
                        lambda: [self.server.publish(record, again=again) for record in named],  # noqa: B023
                        min(left, ATTEMPT_S),
                    )
                except _Lost:
                    self.server.counts["publish_again"] += 1
            if until - self.loop._now <= 1e-6:
                self.server.counts["publish_unknown"] += sent
                failure = PublishUnknown("no answer before the deadline") if sent else BusUnavailable("not sent")
                return [failure for _ in named]
            await asyncio.sleep(0.001)

    def publish_soon(
        self, subject: str, data: bytes, headers: Headers | None = None, *, msg_id: str | None = None
    ) -> None:
        if not subject.startswith("events."):
            return  # logs, spans and usage: nobody in this world reads them
        self._soon.append(self._named(Record(subject, data, headers, msg_id)))
        if len(self._soon) == 1:
            self.process.call_at(self.loop._now + 0.01, self._write_soon)

    def _write_soon(self) -> None:
        if not self.connected:
            self.process.call_at(self.loop._now + 0.1, self._write_soon)
            return
        records, self._soon = self._soon, []
        self._out(lambda: [self.server.publish(record, again=True) for record in records] and None)

    async def flush(self, timeout_s: float = 5.0) -> bool:
        try:
            await self.ask(lambda: None, timeout_s)
        except BusUnavailable:
            return False
        return True

    # ------------------------------------------------------------------ core messages

    def send(self, subject: str, data: bytes, headers: Headers | None = None, *, reply: str = "") -> None:
        if not self.connected:
            return
        if self.network.lost_sends and self.network.rng.random() < self.network.lost_sends:
            self.server.counts["lost_send"] += 1
            return
        self._out(lambda: self.server.core.send(subject, data, dict(headers or {})))

    async def subscribe(
        self,
        subject: str,
        callback: Callable[[Any], None] | Callable[[Any], Awaitable[None]],
        *,
        queue: str | None = None,
        in_bunches: bool = False,
    ) -> SimSubscription:
        subscription = SimSubscription(self, subject, callback, queue)
        self._interests.append(subscription)
        if self.connected:
            self.server.core.add(subscription.interest)
        await self.flush()
        return subscription

    def new_inbox(self) -> str:
        self._inboxes += 1
        return f"_INBOX_{self.process.name}.{self._inboxes}"

    # ------------------------------------------------------------------ pulling

    async def pull(self, stream: str, consumer: str, on_delivery: Callable[[Any], None], **_: object) -> SimPuller:
        puller = SimPuller(self, stream, consumer, on_delivery)
        self._pullers.append(puller)
        return puller

    # ------------------------------------------------------------------ reading

    async def get_last(self, stream: str, subject: str, *, from_leader: bool = False) -> Stored | None:
        kept = await self.ask(lambda: self.server.stream(stream).last(subject, self.server.now()))
        return None if kept is None else stored(kept)

    async def get_many(self, stream: str, subjects: Sequence[str]) -> dict[str, Stored]:
        wanted = list(subjects)

        def find() -> dict[str, Stored]:
            found, now = self.server.stream(stream), self.server.now()
            return {kept.subject: stored(kept) for subject in wanted for kept in found.matching(subject, now)}

        return await self.ask(find, 10.0)

    async def read(
        self,
        stream: str,
        filter_subject: str = ">",
        *,
        start_seq: int = 1,
        follow: bool = False,
        headers_only: bool = False,
        idle_timeout_s: float | None = None,
    ) -> AsyncIterator[Stored]:
        if follow:
            async for each in self._follow(stream, filter_subject, start_seq):
                yield each
            return

        def find() -> list[Stored]:
            found = [*self.server.stream(stream).matching(filter_subject, self.server.now(), start_seq)]
            return [stored(kept, len(found) - place) for place, kept in enumerate(found, 1)]

        for each in await self.ask(find, 10.0):
            yield each

    async def _follow(self, stream: str, filter_subject: str, start_seq: int) -> AsyncIterator[Stored]:
        watch = SimWatch(self, stream, filter_subject, start_seq)
        self._watches.append(watch)
        watch.restart()
        try:
            while True:
                kept = await watch.next()
                if kept is not None:
                    yield stored(kept)
        finally:
            watch.close()

    async def purge(self, stream: str, filter_subject: str) -> int:
        def purge() -> int:
            found = self.server.stream(stream)
            return sum(found.remove(kept.seq) for kept in list(found.matching(filter_subject, self.server.now())))

        return await self.ask(purge)

    async def stream_info(self, stream: str, subjects_filter: str | None = None) -> StreamInfo:
        def look() -> StreamInfo:
            info = self.server.stream(stream).info(self.server.now(), subjects_filter)
            if stream.startswith("WORK"):
                journal = "JOURNAL" + stream[4:]
                info.sources[journal] = self.server.sourcing(stream)
            return info

        return await self.ask(look)

    # ------------------------------------------------------------------ administration

    async def await_topology(self, timeout_s: float | None = None) -> None:
        await self.ask(lambda: None)

    async def ensure_stream(self, name: str) -> None:
        await self.ask(lambda: self.server.ensure_stream(name))

    async def restart_source(self, stream: str, source: str, start_seq: int) -> None:
        await self.ask(lambda: self.server.restart_source(stream, start_seq))

    def keep_memory_streams(self) -> None:
        """The server makes them again by itself here."""

    async def ensure_consumer(self, stream: str, spec: ConsumerSpec) -> None:
        await self.ask(lambda: self.server.ensure_consumer(stream, spec))

    async def delete_consumer(self, stream: str, name: str) -> bool:
        return await self.ask(lambda: self.server.stream(stream).consumers.pop(name, None) is not None)

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo | None:
        def look() -> ConsumerInfo | None:
            there = self.server.streams.get(stream)
            consumer = there.consumers.get(name) if there is not None else None
            return None if consumer is None else consumer.info()

        return await self.ask(look)

    async def list_consumers(self, stream: str) -> list[ConsumerInfo]:
        return await self.ask(lambda: [c.info() for c in self.server.stream(stream).consumers.values()])

    def kv(self, bucket: str) -> SimKeyValue:
        return SimKeyValue(self, bucket)

    # ------------------------------------------------------------------ connection

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._on_reconnect.append(callback)
        return lambda: self._on_reconnect.remove(callback)

    def on_disconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._on_disconnect.append(callback)
        return lambda: self._on_disconnect.remove(callback)


class _Lost(Exception):
    """No answer: the connection broke, or the time is up."""


class SimSubscription:
    """Interest in a subject until `close`."""

    def __init__(self, bus: SimBus, subject: str, callback: Callable[[Any], Any], queue: str | None) -> None:
        self._bus = bus
        self._callback = callback
        self._is_async = asyncio.iscoroutinefunction(callback)
        self._closed = False
        self.interest = Interest(subject, queue, self._arrive)

    def _arrive(self, subject: str, data: bytes, headers: dict[str, str]) -> None:
        if not self._bus.process.dead:
            self._bus._in(self._call, SimMessage(subject, data, headers))

    def _call(self, message: SimMessage) -> None:
        if self._closed:
            return
        if self._is_async:
            self._bus.process.start(self._callback(message))
        else:
            self._callback(message)

    async def close(self) -> None:
        self._closed = True
        self._bus.server.core.drop(self.interest)
        if self in self._bus._interests:
            self._bus._interests.remove(self)


class SimDelivery:
    """One delivered message, and the one answer it gets."""

    __slots__ = ("_bus", "_consumer", "_stream", "answered", "data", "headers", "num_delivered", "pending",
                 "published_at", "stream_seq", "subject")  # fmt: skip

    def __init__(self, puller: SimPuller, kept: Kept, number: int, pending: int) -> None:
        self._bus, self._stream, self._consumer = puller.bus, puller.stream, puller.consumer
        self.subject, self.data, self.headers = kept.subject, kept.data, kept.headers
        self.num_delivered, self.pending, self.stream_seq, self.published_at = number, pending, kept.seq, kept.at
        self.answered = False

    def header(self, name: str) -> str | None:
        return self.headers.get(name)

    def ack(self) -> None:
        self._answer("ack")

    def nak(self, delay_s: float = 0.0) -> None:
        self._answer("nak", delay_s)

    def term(self) -> None:
        self._answer("term")

    async def in_progress(self, timeout_s: float = 2.0) -> bool:
        if self.answered:
            return False
        try:
            await self._bus.ask(lambda: self._at_server("wpi", 0.0), timeout_s)
        except BusUnavailable:
            return False
        return True

    def _answer(self, answer: str, delay_s: float = 0.0) -> None:
        if self.answered:
            self._bus.server.counts["answered_twice"] += 1
            return
        self.answered = True
        if self._bus.connected:
            self._bus._out(lambda: self._at_server(answer, delay_s))

    def _at_server(self, answer: str, delay_s: float) -> None:
        self._bus.server.answer(self._stream, self._consumer, self.stream_seq, answer, delay_s)


class SimPuller:
    """Open pull requests on one consumer."""

    def __init__(self, bus: SimBus, stream: str, consumer: str, on_delivery: Callable[[Any], None]) -> None:
        self.bus, self.stream, self.consumer = bus, stream, consumer
        self._on_delivery = on_delivery
        self._wanted = 0
        self.outstanding = 0
        self._asking = False
        self._closing = False
        self._epoch = 0
        self._pulls: list[Pull] = []

    def want(self, number: int) -> None:
        self._wanted = number
        if number > self.outstanding:
            self._ask_soon()

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self.outstanding = 0
        pulls, self._pulls = self._pulls, []
        await self.bus.flush(1.0)
        for pull in pulls:
            pull.left = 0

    def lost_at_server(self) -> None:
        """The connection broke: the server drops what was asked."""
        for pull in self._pulls:
            pull.left = 0

    def lost(self) -> None:
        self.outstanding = 0
        self._epoch += 1
        self._pulls = []

    def listen(self) -> None:
        self._ask_soon()

    def _ask_soon(self) -> None:
        if not self._asking:
            self._asking = True
            self.bus.process.call(self._ask)

    def _ask(self) -> None:
        self._asking = False
        missing = self._wanted - self.outstanding
        if missing <= 0 or self._closing or not self.bus.connected:
            return
        self.outstanding += missing
        pull = Pull(missing, self.bus.loop.time() + PULL_S, self._deliver)
        self._pulls.append(pull)
        epoch = self._epoch

        def asked() -> None:
            if not self.bus.server.pull(self.stream, self.consumer, pull):
                self.bus._in(self._refused, pull, epoch)

        self.bus._out(asked)
        self.bus.process.call_at(pull.until, self._expired, pull, epoch)

    def _refused(self, pull: Pull, epoch: int) -> None:
        if epoch == self._epoch and not self._closing:
            self.outstanding = max(0, self.outstanding - pull.left)
            pull.left = 0
            self.bus.process.call_at(self.bus.loop.time() + PAUSE_S, self._ask)

    def _expired(self, pull: Pull, epoch: int) -> None:
        if pull in self._pulls:
            self._pulls.remove(pull)
        if epoch == self._epoch and not self._closing and pull.left:
            self.outstanding = max(0, self.outstanding - pull.left)
            pull.left = 0
            self._ask_soon()

    def _deliver(self, kept: Kept, number: int, pending: int) -> None:
        if not self.bus.process.dead:
            self.bus._in(self._arrived, SimDelivery(self, kept, number, pending))

    def _arrived(self, delivery: SimDelivery) -> None:
        if self._closing:
            delivery.nak()
            return
        self.outstanding = max(0, self.outstanding - 1)
        self._wanted = max(0, self._wanted - 1)
        self._on_delivery(delivery)


class SimWatch:
    """Follows a stream or a bucket: what is there, then what comes; across reconnects by reading again."""

    def __init__(self, bus: SimBus, stream: str, filter_subject: str, start_seq: int = 1, stem: str = "") -> None:
        self._bus = bus
        self._stream = stream
        self._filter = filter_subject
        self._next_seq = start_seq
        self._stem = stem
        self._ready: deque[Kept | Change | None] = deque()
        self._wakeup: asyncio.Future[None] | None = None
        self._revisions: dict[str, int] = {}
        self._synced = False
        self._watcher: Watcher | None = None
        self._closed = False

    async def __aenter__(self) -> SimWatch:
        self._bus._watches.append(self)
        self.restart()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> SimWatch:
        return self

    async def __anext__(self) -> Change:
        while True:
            change = await self.next()
            if isinstance(change, Change):
                return change

    async def next(self) -> Any:
        """What comes next; None now and then."""
        while not self._ready:
            self._wakeup = self._bus.loop.create_future()
            await self._wakeup
        return self._ready.popleft()

    def close(self) -> None:
        self._closed = True
        self.lost()
        if self in self._bus._watches:
            self._bus._watches.remove(self)

    def lost(self) -> None:
        """The consumer is gone."""
        stream = self._bus.server.streams.get(self._stream)
        if stream is not None and self._watcher in stream.watchers:
            stream.watchers.remove(self._watcher)
        self._watcher = None

    def restart(self) -> None:
        """Read what is there, and follow from then on."""
        if not self._closed and self._bus.connected:
            self._bus._out(self._open)

    def _open(self) -> None:
        self.lost()
        stream = self._bus.server.streams[self._stream]
        start = 1 if self._stem else self._next_seq
        for kept in list(stream.matching(self._filter, self._bus.server.now(), start)):
            self._send(kept)
        present = {kept.subject for kept in stream.kept.values()}
        self._bus._in(self._all_read, present)
        self._watcher = Watcher(self._filter, self._send)
        stream.watchers.append(self._watcher)

    def _send(self, kept: Kept) -> None:
        if not self._bus.process.dead:
            self._bus._in(self._take, kept)

    def _take(self, kept: Kept) -> None:
        if not self._stem:
            if kept.seq >= self._next_seq:
                self._next_seq = kept.seq + 1
                self._add(kept)
            return
        key = kept.subject[len(self._stem) :]
        if OPERATION in kept.headers:
            if self._revisions.pop(key, None) is not None or self._synced:
                self._add(Change(key, None, kept.seq))
        elif self._revisions.get(key) != kept.seq:
            self._revisions[key] = kept.seq
            self._add(Change(key, kept.data, kept.seq))

    def _all_read(self, present: set[str]) -> None:
        if not self._stem:
            return
        for key in [key for key in self._revisions if self._stem + key not in present]:
            self._add(Change(key, None, self._revisions.pop(key)))
        if not self._synced:
            self._synced = True
            self._add(Change("", None, 0, synced=True))

    def _add(self, item: Kept | Change) -> None:
        self._ready.append(item)
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


class SimKeyValue:
    """One bucket."""

    def __init__(self, bus: SimBus, bucket: str) -> None:
        self._bus = bus
        self.bucket = bucket
        self._stream = f"KV_{bucket}"
        self._stem = f"$KV.{bucket}."

    def _entry(self, kept: Kept | None) -> Entry | None:
        if kept is None or OPERATION in kept.headers:
            return None
        return Entry(kept.subject[len(self._stem) :], kept.data, kept.seq, kept.at)

    async def get(self, key: str, *, from_leader: bool = False) -> Entry | None:
        server = self._bus.server
        return self._entry(
            await self._bus.ask(lambda: server.stream(self._stream).last(self._stem + key, server.now()))
        )

    async def entries(self, prefix: str = "") -> list[Entry]:
        server = self._bus.server
        wanted = f"{self._stem}{prefix[: prefix.rfind('.') + 1]}>"
        found = await self._bus.ask(lambda: list(server.stream(self._stream).matching(wanted, server.now())))
        entries = [self._entry(kept) for kept in found]
        return [entry for entry in entries if entry is not None and entry.key.startswith(prefix)]

    def watch(self, prefix: str = "") -> SimWatch:
        wanted = f"{self._stem}{prefix[: prefix.rfind('.') + 1]}>"
        return SimWatch(self._bus, self._stream, wanted, stem=self._stem)

    async def put(self, key: str, value: bytes, ttl_s: float | None = None) -> int:
        return await self._write(key, value, {}, ttl_s)

    async def create(self, key: str, value: bytes, ttl_s: float | None = None) -> int:
        try:
            return await self._write(key, value, {EXPECT: "0"}, ttl_s)
        except WrongRevision:
            server = self._bus.server
            kept = await self._bus.ask(lambda: server.stream(self._stream).last(self._stem + key, server.now()))
        if kept is not None and OPERATION not in kept.headers:
            raise KeyExists(f"{self.bucket}/{key} exists", key=key)
        try:
            return await self._write(key, value, {EXPECT: str(0 if kept is None else kept.seq)}, ttl_s)
        except WrongRevision as error:
            raise KeyExists(f"{self.bucket}/{key} exists", key=key) from error

    async def update(self, key: str, value: bytes, revision: int, ttl_s: float | None = None) -> int:
        return await self._write(key, value, {EXPECT: str(revision)}, ttl_s)

    async def delete(self, key: str, revision: int | None = None) -> None:
        headers = {OPERATION: "DEL"}
        if revision is not None:
            headers[EXPECT] = str(revision)
        await self._write(key, b"", headers, GRAVE_S)

    async def _write(self, key: str, value: bytes, headers: dict[str, str], ttl_s: float | None) -> int:
        published = await self._bus.publish(self._stem + key, value, headers=headers, ttl_s=ttl_s)
        return published.seq


def _settle(future: asyncio.Future[Any], answer: Any, error: BusError | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(answer)


def _fail(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(_Lost())


def _server_context() -> Any:
    from contextvars import Context

    return Context()


_SERVER = _server_context()
"""The server is no process: it is never paused."""
__all__ = ["Delivery", "Handle", "Network", "SimBus"]
