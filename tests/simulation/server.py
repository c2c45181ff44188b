"""The bus server of a simulation: streams in time. Owns sourcing, redelivery, restarts and what they lose."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable

from tests.simulation.loop import SimLoop
from tests.simulation.streams import Consumer, Core, Kept, Pull, Stream, bucket_of, missing, stream_of

from squall_bus.errors import BusError, NotFound
from squall_bus.records import ConsumerSpec, Published, Record, Sourcing
from squall_contracts import subjects
from squall_contracts.topology import LEASE_S, Topology

SOURCE_S = (0.0005, 0.003)
"""How far WORK is behind the journal."""
STALLS = 0.3
"""Share of restarts after which a queue does not go on by itself (measured with server 2.15.1)."""


class Server:
    """All streams of a region on one server."""

    def __init__(self, loop: SimLoop, topology: Topology, rng: random.Random, wall: float) -> None:
        self.loop = loop
        self.topology = topology
        self.rng = rng
        self.wall = wall
        """Unix time of the server's clock when the loop's was 0."""
        self.up = True
        self.core = Core()
        self.counts: Counter[str] = Counter()
        self.on_write: Callable[[Stream, Kept], None] | None = None
        """Looks at everything that is stored, before anybody is told."""
        self.sourcing_s = SOURCE_S
        self.streams: dict[str, Stream] = {}
        for spec in topology.streams:
            self.streams[spec.name] = stream_of(spec)
        self._prefixes = [
            (pattern.removesuffix(">"), spec.name) for spec in topology.streams for pattern in spec.subjects
        ]
        self._routes: dict[str, str] = {}
        self._specs = {spec.name: spec for spec in topology.streams}
        self._ttls = {f"KV_{bucket.name}": bucket.ttl_s for bucket in topology.buckets}
        for bucket in topology.buckets:
            self.streams[f"KV_{bucket.name}"] = bucket_of(bucket.name)
        self._sourcing: set[str] = set()
        self._stalled: set[str] = set()
        """Queues that do not take over their journal since the restart: the server would try again after 42 s."""

    def now(self) -> float:
        """Unix seconds."""
        return self.wall + self.loop.time()

    # ------------------------------------------------------------------ storing

    def route(self, subject: str) -> str:
        """The stream that stores a subject."""
        if subject.startswith("$KV."):
            return f"KV_{subject.split('.', 2)[1]}"
        prefix = ".".join(subject.split(".", 3)[:3])
        name = self._routes.get(prefix)
        if name is None:
            name = next((name for start, name in self._prefixes if subject.startswith(start)), "")
            if not name:
                raise NotFound(f"no stream stores {subject}", subject=subject)
            self._routes[prefix] = name
        return name

    def stream(self, name: str) -> Stream:
        """Raises `NotFound`."""
        found = self.streams.get(name)
        if found is None:
            raise missing(name)
        return found

    def publish(self, record: Record, *, again: bool) -> Published | BusError:
        """Store a record. `again`: it was sent before, so that what is there may be itself."""
        stream = self.stream(self.route(record.subject))
        if record.subject.startswith("requeue."):
            record = Record("calls" + record.subject[7:], record.data, record.headers, record.msg_id, record.ttl_s)
        before = stream.last_seq
        ttl_s = self._ttls.get(stream.name, 0)
        if ttl_s:
            record = Record(
                record.subject, record.data, record.headers, record.msg_id, min(record.ttl_s or ttl_s, ttl_s)
            )
        outcome = stream.publish(record, self.now())
        if isinstance(outcome, BusError):
            there = stream.last(record.subject, self.now())
            if again and there is not None and there.msg_id == record.msg_id:
                return Published(stream.name, there.seq, duplicate=True)
            return outcome
        if outcome.seq > before:
            self._stored(stream, stream.kept[outcome.seq])
        return outcome

    def _stored(self, stream: Stream, kept: Kept) -> None:
        if self.on_write is not None:
            self.on_write(stream, kept)
        spec = self._specs.get(stream.name)
        if spec is None:
            return
        if spec.republish is not None:
            start, target, headers_only = spec.republish
            subject = target[:-1] + kept.subject[len(start) - 1 :]
            headers = {**kept.headers, "Nats-Sequence": str(kept.seq)}
            self.core.send(subject, b"" if headers_only else kept.data, headers)
        if stream.name.startswith("JOURNAL"):
            self._source_soon("WORK" + stream.name[7:])
        elif stream.name.startswith("WORK"):
            self.hand_out(stream)

    # ------------------------------------------------------------------ the work queues

    def _source_soon(self, work: str) -> None:
        if work not in self._sourcing:
            self._sourcing.add(work)
            self.loop.call_later(self.rng.uniform(*self.sourcing_s), self._source, work)

    def _source(self, work: str) -> None:
        self._sourcing.discard(work)
        stream, journal = self.streams.get(work), self.streams["JOURNAL" + work[4:]]
        if not self.up or stream is None or work in self._stalled:
            return
        for seq in range(stream.sourced_seq + 1, journal.last_seq + 1):
            kept = journal.kept.get(seq)
            if kept is not None and kept.until > self.now():
                headers = {**kept.headers, "Nats-Stream-Source": f"{journal.name} {seq} > > {kept.subject}"}
                copy = stream.append(kept.subject, kept.data, headers, self.now(), kept.msg_id)
                copy.at, copy.until = kept.at, kept.until
        stream.sourced_seq = journal.last_seq
        self.hand_out(stream)

    def ensure_consumer(self, name: str, spec: ConsumerSpec) -> None:
        """Make the durable if it is not there."""
        stream = self.stream(name)
        if spec.name not in stream.consumers:
            consumer = Consumer(stream, spec.name, spec.filter_subject, LEASE_S)
            stream.consumers[spec.name] = consumer
            consumer.ready.extend(seq for seq, kept in stream.kept.items() if consumer.wants(kept.subject))

    def pull(self, name: str, consumer: str, pull: Pull) -> bool:
        """Ask for messages. False if there is no such consumer."""
        stream = self.streams.get(name)
        if stream is None or consumer not in stream.consumers:
            return False
        stream.consumers[consumer].pulls.append(pull)
        self.hand_out(stream)
        return True

    def hand_out(self, stream: Stream) -> None:
        """Give what is ready to who asks."""
        now = self.loop.time()
        for consumer in stream.consumers.values():
            while consumer.ready and consumer.pulls:
                pull = consumer.pulls[0]
                if pull.left <= 0 or pull.until <= now:
                    consumer.pulls.popleft()
                    continue
                seq = consumer.ready.popleft()
                kept = stream.kept.get(seq)
                if kept is None:
                    continue
                pull.left -= 1
                number = consumer.deliveries[seq] = consumer.deliveries.get(seq, 0) + 1
                consumer.delivered_seq = max(consumer.delivered_seq, seq)
                self._lease(stream, consumer, seq)
                if number > 1:
                    self.counts["redelivered"] += 1
                pull.deliver(kept, number, sum(each in stream.kept for each in consumer.ready))

    def _lease(self, stream: Stream, consumer: Consumer, seq: int) -> None:
        consumer.due[seq] = self.loop.time() + consumer.ack_wait_s
        self.loop.call_at(consumer.due[seq], self._ack_wait_over, stream, consumer, seq)

    def _ack_wait_over(self, stream: Stream, consumer: Consumer, seq: int) -> None:
        due = consumer.due.get(seq)
        if due is None or not self.up or self.streams.get(stream.name) is not stream:
            return
        if due > self.loop.time() + 1e-9:
            self.loop.call_at(due, self._ack_wait_over, stream, consumer, seq)
            return
        self.counts["ack_wait_over"] += 1
        consumer.again(seq)
        self.hand_out(stream)

    def answer(self, name: str, consumer_name: str, seq: int, answer: str, delay_s: float = 0.0) -> None:
        """An ack, nak, term or in-progress. Whose delivery it was does not matter, as measured."""
        stream = self.streams.get(name)
        consumer = stream.consumers.get(consumer_name) if stream is not None else None
        if stream is None or consumer is None or seq not in consumer.due:
            return
        match answer:
            case "ack" | "term":
                stream.remove(seq)
            case "wpi":
                consumer.due[seq] = self.loop.time() + consumer.ack_wait_s
            case "nak" if delay_s > 0:
                consumer.due[seq] = self.loop.time() + delay_s
                self.loop.call_at(consumer.due[seq], self._ack_wait_over, stream, consumer, seq)
            case "nak":
                consumer.again(seq)
                self.hand_out(stream)

    # ------------------------------------------------------------------ restarts

    def crash(self) -> None:
        """SIGKILL: open pulls and subscriptions are gone with their connections."""
        self.up = False
        self.core = Core()
        for stream in self.streams.values():
            stream.watchers.clear()
            for consumer in stream.consumers.values():
                consumer.pulls.clear()

    def restart(self, *, loses: str, lost_s: float) -> None:
        """Back again. What is synced to disk is there; WORK, which is not, may have lost its last moments, may have
        come back whole, or may be gone. `loses`: "", "tail", "acks", "everything" or "stream"."""
        self.up = True
        self.streams["KV_nodes"] = bucket_of("nodes")
        horizon = self.now() - lost_s
        for shard in range(self.topology.shards):
            region = self.topology.region
            self._lose(self.streams.get(subjects.work_stream(region, shard)), loses, horizon)
            events = self.streams[subjects.events_stream(region, shard)]
            for seq in [seq for seq, kept in events.kept.items() if kept.at > horizon and loses]:
                events.remove(seq)
            if loses == "stream":
                self.streams.pop(subjects.work_stream(region, shard), None)
        self.counts[f"restart_loses_{loses or 'nothing'}"] += 1
        for name, stream in self.streams.items():
            stream.ids = {i: known for i, known in stream.ids.items() if known[0] in stream.kept}
            if name.startswith("WORK"):
                for consumer in stream.consumers.values():
                    for seq in list(consumer.due):
                        self._lease(stream, consumer, seq)
                if self.rng.random() < STALLS:
                    self._stalled.add(name)
                    self.counts["stalled"] += 1
                    self.loop.call_later(42.0, self._stall_over, name)
                self._source_soon(name)

    def _stall_over(self, name: str) -> None:
        if self.up:
            self._stalled.discard(name)
            self._source_soon(name)

    def _lose(self, work: Stream | None, loses: str, horizon: float) -> None:
        if work is None:
            return
        if loses == "tail":  # what was sourced last is gone, and is not sourced again
            for seq in [seq for seq, kept in work.kept.items() if kept.at > horizon]:
                work.remove(seq)
        elif loses == "acks":  # who had what is forgotten: everything waits, and counts its deliveries anew
            for consumer in work.consumers.values():
                consumer.ready = deque_of(consumer, work)
                consumer.due.clear()
                consumer.deliveries.clear()
        elif loses == "everything":  # what was acked and purged is back
            work.kept.clear()
            work.newest.clear()
            work.sourced_seq = 0
            for consumer in work.consumers.values():
                consumer.ready.clear()
                consumer.due.clear()
                consumer.deliveries.clear()
                consumer.delivered_seq = 0

    def ensure_stream(self, name: str) -> None:
        """A stream that is gone is made again, and sources from the beginning."""
        if name not in self.streams:
            self.streams[name] = stream_of(self._specs[name])
            self._stalled.discard(name)
            self._source_soon(name)

    def sourcing(self, work: str) -> Sourcing:
        """What the server says about a queue and its journal. While it stands still it says that it is not behind."""
        if work in self._stalled:
            return Sourcing(lag=0, seq=self.streams[work].sourced_seq, silent_s=None, error="")
        behind = self.streams["JOURNAL" + work[4:]].last_seq - self.streams[work].sourced_seq
        return Sourcing(lag=behind, seq=self.streams[work].sourced_seq, silent_s=0.5, error="")

    def restart_source(self, work: str, start_seq: int) -> None:
        """Take over from there on, at once."""
        self.stream(work).sourced_seq = max(0, start_seq - 1)
        self._stalled.discard(work)
        self._source_soon(work)


def deque_of(consumer: Consumer, stream: Stream) -> deque[int]:
    """Everything in the stream that the consumer wants, in order."""
    return deque(seq for seq, kept in stream.kept.items() if consumer.wants(kept.subject))
