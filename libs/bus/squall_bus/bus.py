"""Bus: the one object that services hold. Delegates; owns nothing but the wiring of its parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any

from squall_bus import reading
from squall_bus.administration import Administration
from squall_bus.bunches import Bunches
from squall_bus.delivery import Delivery
from squall_bus.errors import BusError
from squall_bus.kv import KeyValue
from squall_bus.link import Link
from squall_bus.publishing import Publisher
from squall_bus.pulling import Asking, Puller
from squall_bus.records import (
    PAGE,
    BusStats,
    ConsumerInfo,
    ConsumerSpec,
    Headers,
    Message,
    Published,
    Range,
    Record,
    Stored,
    StoreInfo,
    StreamInfo,
)
from squall_bus.soon import SoonBuffer
from squall_bus.subscribing import Subscription
from squall_contracts.topology import Topology

DEADLINE_S = 15.0


class Bus:
    """A connection to the bus. Made by `squall_bus.connect`."""

    def __init__(
        self, link: Link, topology: Topology, publisher: Publisher, soon: SoonBuffer, bunches: Bunches
    ) -> None:
        self.topology = topology
        self._link = link
        self._publisher = publisher
        self._soon = soon
        self._bunches = bunches
        self._admin = Administration(link, topology)

    # ------------------------------------------------------------------ publishing

    def publish(
        self,
        subject: str,
        data: bytes,
        *,
        headers: Headers | None = None,
        msg_id: str | None = None,
        ttl_s: float | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> Coroutine[Any, Any, Published]:
        """Store one record and wait until the server has it on disk.

        Records of one stream that arrive while a write is in flight go out together as one atomic batch.
        Retried with the same msg id until the deadline (without `msg_id` one is made).
        Raises SubjectTaken, WrongRevision, StreamFull, BusUnavailable (not stored), PublishUnknown (maybe stored).
        """
        return self._publisher.publish(Record(subject, data, headers, msg_id, ttl_s), deadline_s)

    async def publish_batch(
        self, records: Sequence[Record], *, deadline_s: float = DEADLINE_S
    ) -> list[Published | BusError]:
        """Store records of one stream, any number, in atomic batches of at most 1,000; one outcome for each record.

        A batch that is refused because of one record is repeated in parts, so that every other record is stored.
        """
        return await self._publisher.publish_batch(records, deadline_s)

    def publish_soon(
        self, subject: str, data: bytes, headers: Headers | None = None, *, msg_id: str | None = None
    ) -> None:
        """Fire and forget, batched (events, logs, spans, usage). Never blocks, never raises for a full buffer:
        the oldest records are dropped and counted in `stats.soon_dropped`. May be stored twice after a reconnect
        unless `msg_id` is given."""
        self._soon.add(Record(subject, data, headers, msg_id))

    async def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until everything given to `publish_soon` and `send` is out. False when the time was too short."""
        return await self._soon.flush(timeout_s) and await self._link.flushed(timeout_s)

    # ------------------------------------------------------------------ core messages

    def send(self, subject: str, data: bytes, headers: Headers | None = None, *, reply: str = "") -> None:
        """Core NATS, at most once: one buffered write, no await. Bounded while disconnected."""
        self._link.send(subject, data, headers, reply)

    async def request(
        self, subject: str, data: bytes, *, headers: Headers | None = None, timeout_s: float = 5.0
    ) -> Message:
        """Core request; raises BusUnavailable when nobody listens or no reply came in time."""
        return await self._link.request(subject, data, headers=headers, timeout_s=timeout_s)

    async def subscribe(
        self,
        subject: str,
        callback: Callable[[Message], None] | Callable[[Message], Awaitable[None]],
        *,
        queue: str | None = None,
        in_bunches: bool = False,
    ) -> Subscription:
        """Plain subscription. A sync callback runs at once in the read loop and must be short; an async one runs
        one message at a time. An exception is logged and counted, the subscription goes on. Survives reconnects.
        Returns when the server knows it: what is sent after that is seen.

        `in_bunches`: up to 0.1 s later, many at a time, which costs a busy bus's listener a fraction; in order among
        each other, not with what else is heard."""
        link = await self._bunches.link() if in_bunches else self._link
        return await Subscription.open(link, subject, callback, queue)

    def new_inbox(self) -> str:
        """A subject of our own, under the role's inbox prefix."""
        return self._link.new_inbox()

    # ------------------------------------------------------------------ pulling

    async def pull(
        self,
        stream: str,
        consumer: str,
        on_delivery: Callable[[Delivery], None],
        *,
        group: str | None = "g",
        priority: int = 0,
        expires_s: float = 10.0,
    ) -> Puller:
        """Take work from a durable consumer; nothing is asked for until `want(n)`.

        `on_delivery` is called in the read loop and must be short; it never runs after `close()` began.
        `group=None` for a consumer without priority group.
        """
        asking = Asking(group=group, priority=priority, expires_s=expires_s)
        return await Puller.open(self._link, stream, consumer, on_delivery, asking)

    # ------------------------------------------------------------------ reading

    async def get_last(self, stream: str, subject: str, *, from_leader: bool = False) -> Stored | None:
        """The newest message of one subject. `from_leader` asks the leader instead of any replica: with R3 a replica
        may not have seen a write that was just acknowledged."""
        return await reading.get_last(self._link, stream, subject, from_leader)

    async def get_many(self, stream: str, subjects: Sequence[str]) -> dict[str, Stored]:
        """The newest message of each subject that has one. Wildcards are allowed."""
        return await reading.get_many(self._link, stream, subjects)

    def read(  # noqa: PLR0913 — each narrows what is read
        self,
        stream: str,
        filter_subject: str | None = None,
        *,
        start_seq: int = 1,
        follow: bool = False,
        headers_only: bool = False,
        idle_timeout_s: float | None = None,
        page: int = PAGE,
    ) -> AsyncIterator[Stored]:
        """The stream's messages from `start_seq` on, in order, without gaps or repeats, also across reconnects.

        Without a filter everything but the stream's canary. `follow=False` ends after what is there now. `follow=True`
        goes on for ever, or until nothing came for `idle_timeout_s`. Close the iterator (`aclosing`) if leaving early.
        `page`: how many to ask for at once, for those who want few.
        """
        return reading.read(
            self._link,
            Range(stream, filter_subject or self._everything_in(stream), start_seq, headers_only, page),
            follow=follow,
            idle_timeout_s=idle_timeout_s,
        )

    def _everything_in(self, stream: str) -> str:
        """Streams of one subject are read by it: what else is in them is not meant for their readers."""
        spec = next((spec for spec in self.topology.streams if spec.name == stream), None)
        if spec is None or not spec.canary or spec.sources or len(spec.subjects) != 1:
            return ">"
        return spec.subjects[0]

    async def purge(self, stream: str, filter_subject: str, *, below_seq: int | None = None) -> int:
        """Remove the messages of matching subjects (only those before a sequence, if one is given); how many."""
        return await self._admin.purge(stream, filter_subject, below_seq)

    async def delete_message(self, stream: str, seq: int) -> bool:
        """Remove one message. False when it was not there."""
        return await self._admin.delete_message(stream, seq)

    async def stream_info(self, stream: str, subjects_filter: str | None = None) -> StreamInfo:
        """Counts of a stream; with `subjects_filter` also messages per subject (all pages)."""
        return await self._admin.stream_info(stream, subjects_filter)

    async def store_info(self) -> StoreInfo:
        """How much our account stores, and how much it may."""
        return await self._admin.store_info()

    async def clock_skew(self) -> float:
        """How many seconds our clock is ahead of the server's; exact to half a round trip."""
        return await self._admin.clock_skew()

    # ------------------------------------------------------------------ administration

    async def ensure_topology(self) -> None:
        """Create or update every stream and bucket of the topology. Idempotent; several services may run it at once.
        Raises TopologyConflict when the server holds something that cannot be changed into what is wanted."""
        await self._admin.ensure_topology()

    async def restart_source(self, stream: str, source: str, start_seq: int) -> None:
        """Make a stream take over another one at once, from that message on, when the server has given up for a while
        (it waits 12 s after the first failed try, 34 s after the second). Both are in the topology, and the source has
        one subject."""
        await self._admin.restart_source(stream, source, start_seq)

    async def drop_stream(self, stream: str) -> None:
        """Delete a stream of the topology with all that is in it, for what can be made again (`ensure_stream`). When
        the servers that have it are away nobody confirms it, which raises BusUnavailable, and it is deleted
        nevertheless: those forget it when they come back."""
        await self._admin.drop_stream(stream)

    async def await_topology(self, timeout_s: float | None = None) -> None:
        """Wait until every stream and bucket of the topology is there: services use them, and may not make them.
        Raises TopologyMissing after `timeout_s` (default: the time that a connection may take)."""
        await self._admin.await_topology(self._link.settings.connect_timeout_s if timeout_s is None else timeout_s)

    async def ensure_stream(self, name: str) -> None:
        """Create one stream of the topology, if it is not there."""
        await self._admin.ensure_stream(name)

    def keep_memory_streams(self) -> None:
        """From now on make what lies in the server's memory again: after each reconnect, which `ensure_topology` does
        too, and in `await_topology`, if nothing else is missing."""
        self._admin.keep_memory_streams()

    async def ensure_consumer(self, stream: str, spec: ConsumerSpec) -> None:
        """Create the durable pull consumer, or update it; nothing happens when it is as wanted."""
        await self._admin.ensure_consumer(stream, spec)

    async def delete_consumer(self, stream: str, name: str) -> bool:
        """False when it was not there. Messages stay in the stream."""
        return await self._admin.delete_consumer(stream, name)

    async def pause_consumer(self, stream: str, name: str, for_s: float) -> None:
        """Let it deliver nothing for so long, from now. What it has delivered stays with who got it. Asked again with a
        short time it goes on then; 2.15 has a word for that as well, after which open pulls get nothing.
        Raises NotFound."""
        await self._admin.pause_consumer(stream, name, for_s)

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo | None:
        return await self._admin.consumer_info(stream, name)

    async def list_consumers(self, stream: str) -> list[ConsumerInfo]:
        """All consumers with their counts, page by page (256 a page)."""
        return await self._admin.list_consumers(stream)

    def kv(self, bucket: str) -> KeyValue:
        """The bucket of that name; it must be in the topology."""
        return KeyValue(self._link, self._publisher, self.topology, bucket)

    # ------------------------------------------------------------------ connection

    @property
    def connected(self) -> bool:
        return self._link.connected

    @property
    def connected_at(self) -> float:
        """Unix seconds of the last (re)connect, by our clock."""
        return self._link.connected_at

    @property
    def server_version(self) -> tuple[int, int, int]:
        return self._link.server_version

    @property
    def max_payload(self) -> int:
        """Headers and data of one message together."""
        return self._link.max_payload

    @property
    def stats(self) -> BusStats:
        return self._link.stats

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after every reconnect, also of the connection for bunches; returns a function that stops
        it."""
        stops = self._link.on_reconnect(callback), self._bunches.on_reconnect(callback)

        def stop() -> None:
            for each in stops:
                each()

        return stop

    def on_disconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` whenever the connection is lost; returns a function that stops it."""
        return self._link.on_disconnect(callback)
