"""What the bus server does with messages: streams, consumers, buckets, core subjects. No time of its own, no network.

As measured on nats-server 2.15.1: first write wins on JOURNAL and RESULTS; a work queue that sources the journal; late
answers settle whatever delivery there is; msg ids of removed messages are forgotten at a restart; keys expire without
an event. `server.py` gives it time and restarts, `bus.py` the network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from squall_bus.errors import BusError, NotFound, SubjectTaken, WrongRevision
from squall_bus.records import ConsumerInfo, Published, Record, Stored, StreamInfo
from squall_bus.routes import kv_stream
from squall_contracts.topology import StreamSpec

EXPECT = "Nats-Expected-Last-Subject-Sequence"
OPERATION = "KV-Operation"


@dataclass(slots=True)
class Kept:
    """One message in a stream."""

    subject: str
    data: bytes
    headers: dict[str, str]
    seq: int
    at: float
    msg_id: str | None
    until: float = float("inf")


@dataclass(slots=True, eq=False)
class Pull:
    """One open request for messages."""

    left: int
    until: float
    deliver: Callable[[Kept, int, int], None]
    """Message, number of its delivery, messages behind it."""


class Consumer:
    """A pool's durable on a work queue."""

    def __init__(self, stream: Stream, name: str, filter_subject: str, ack_wait_s: float) -> None:
        self.stream = stream
        self.name = name
        self.filter_subject = filter_subject
        self.ack_wait_s = ack_wait_s
        self.ready: deque[int] = deque()
        """Not delivered, or given back."""
        self.due: dict[int, float] = {}
        """Delivered and not answered: when it comes again."""
        self.deliveries: dict[int, int] = {}
        self.delivered_seq = 0
        self.pulls: deque[Pull] = deque()

    def wants(self, subject: str) -> bool:
        return subject.startswith(self.filter_subject[:-1])

    def forget(self, seq: int) -> None:
        """The message is gone."""
        self.due.pop(seq, None)
        self.deliveries.pop(seq, None)

    def again(self, seq: int) -> None:
        """To be delivered once more, before what is new."""
        if seq in self.stream.kept and self.due.pop(seq, None) is not None:
            self.ready.appendleft(seq)

    def info(self) -> ConsumerInfo:
        waiting = sum(seq in self.stream.kept for seq in self.ready)
        fresh = sum(seq in self.stream.kept and seq not in self.deliveries for seq in self.ready)
        return ConsumerInfo(
            name=self.name,
            pending=fresh,
            ack_pending=len(self.due) + waiting - fresh,
            waiting=len(self.pulls),
            ack_floor_seq=0,
            delivered_seq=self.delivered_seq,
            filter_subject=self.filter_subject,
        )


@dataclass(slots=True, eq=False)
class Watcher:
    """Somebody who reads a stream as it grows."""

    filter_subject: str
    deliver: Callable[[Kept], None]


class Stream:
    """One stream, or one bucket."""

    def __init__(
        self, name: str, *, first_write_wins: bool = False, bucket: bool = False, dedupe_s: float = 10
    ) -> None:
        self.name = name
        self.first_write_wins = first_write_wins
        self.bucket = bucket
        self.dedupe_s = dedupe_s
        self.kept: dict[int, Kept] = {}
        self.newest: dict[str, int] = {}
        """By subject."""
        self.ids: dict[str, tuple[int, float]] = {}
        self.last_seq = 0
        self.consumers: dict[str, Consumer] = {}
        self.watchers: list[Watcher] = []
        self.sourced_seq = 0

    def last(self, subject: str, now: float) -> Kept | None:
        """The newest message of a subject."""
        kept = self.kept.get(self.newest.get(subject, 0))
        if kept is not None and kept.until <= now:
            self.remove(kept.seq)
            return None
        return kept

    def matching(self, pattern: str, now: float, start: int = 1) -> Iterator[Kept]:
        """In order."""
        if "*" not in pattern and ">" not in pattern:
            if (kept := self.last(pattern, now)) is not None and kept.seq >= start:
                yield kept
            return
        for kept in list(self.kept.values()):
            if kept.seq >= start and kept.until > now and matches(pattern, kept.subject):
                yield kept

    def publish(self, record: Record, now: float) -> Published | BusError:
        """Store one record, or say why not."""
        known = self.ids.get(record.msg_id) if record.msg_id else None
        if known is not None and now - known[1] < self.dedupe_s:
            return Published(self.name, known[0], duplicate=True)
        there = self.last(record.subject, now)
        headers = dict(record.headers or {})
        expected = headers.pop(EXPECT, None)
        if expected is not None and int(expected) != (there.seq if there is not None else 0):
            return WrongRevision(f"wrong last sequence of {record.subject}", subject=record.subject)
        if there is not None:
            if self.first_write_wins:
                return SubjectTaken(f"{record.subject} is taken", subject=record.subject)
            if self.bucket:
                self.remove(there.seq)
        if record.ttl_s:
            headers["Nats-TTL"] = f"{max(1, -int(-record.ttl_s // 1))}s"
        kept = self.append(record.subject, record.data, headers, now, record.msg_id)
        kept.until = now + record.ttl_s if record.ttl_s else float("inf")
        if record.msg_id:
            self.ids[record.msg_id] = (kept.seq, now)
        return Published(self.name, kept.seq)

    def append(self, subject: str, data: bytes, headers: dict[str, str], now: float, msg_id: str | None) -> Kept:
        """Store without a question."""
        self.last_seq += 1
        kept = Kept(subject, data, headers, self.last_seq, now, msg_id)
        self.kept[kept.seq] = kept
        self.newest[subject] = kept.seq
        for consumer in self.consumers.values():
            if consumer.wants(subject):
                consumer.ready.append(kept.seq)
        for watcher in self.watchers:
            if matches(watcher.filter_subject, subject):
                watcher.deliver(kept)
        return kept

    def remove(self, seq: int) -> bool:
        """Take a message out."""
        kept = self.kept.pop(seq, None)
        if kept is None:
            return False
        if self.newest.get(kept.subject) == seq:
            del self.newest[kept.subject]
        for consumer in self.consumers.values():
            consumer.forget(seq)
        return True

    def info(self, now: float, pattern: str | None) -> StreamInfo:
        found = [kept for kept in self.kept.values() if kept.until > now]
        subjects: dict[str, int] = {}
        if pattern is not None:
            for kept in found:
                if matches(pattern, kept.subject):
                    subjects[kept.subject] = subjects.get(kept.subject, 0) + 1
        first = found[0].seq if found else self.last_seq + 1
        return StreamInfo(len(found), 0, first, self.last_seq, subjects, {})


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject is one of those that the pattern means."""
    if pattern.endswith(">") and "*" not in pattern:
        return subject.startswith(pattern[:-1])
    if "*" not in pattern:
        return pattern == subject
    wanted, tokens = pattern.split("."), subject.split(".")
    for place, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > place
        if place >= len(tokens) or token not in ("*", tokens[place]):
            return False
    return len(wanted) == len(tokens)


def stored(kept: Kept, pending: int = 0) -> Stored:
    """As `squall_bus` gives it."""
    headers = dict(kept.headers)
    if kept.msg_id:
        headers["Nats-Msg-Id"] = kept.msg_id
    return Stored(kept.subject, kept.data, headers, kept.seq, kept.at, pending)


@dataclass(slots=True, eq=False)
class Interest:
    """One plain subscription."""

    pattern: str
    queue: str | None
    deliver: Callable[[str, bytes, dict[str, str]], None]


@dataclass(slots=True)
class Core:
    """Subjects without a stream."""

    interests: list[Interest] = field(default_factory=list)
    exact: dict[str, list[Interest]] = field(default_factory=dict)
    turn: int = 0

    def add(self, interest: Interest) -> None:
        if "*" in interest.pattern or ">" in interest.pattern:
            self.interests.append(interest)
        else:
            self.exact.setdefault(interest.pattern, []).append(interest)

    def drop(self, interest: Interest) -> None:
        found = self.interests if interest in self.interests else self.exact.get(interest.pattern, [])
        if interest in found:
            found.remove(interest)

    def send(self, subject: str, data: bytes, headers: dict[str, str]) -> None:
        """To everybody who listens, and to one of each queue group."""
        groups: dict[str, list[Interest]] = {}
        for interest in [*self.exact.get(subject, ()), *self.interests]:
            if matches(interest.pattern, subject):
                if interest.queue is None:
                    interest.deliver(subject, data, headers)
                else:
                    groups.setdefault(interest.queue, []).append(interest)
        for members in groups.values():
            self.turn += 1
            members[self.turn % len(members)].deliver(subject, data, headers)


def stream_of(spec: StreamSpec) -> Stream:
    """The model of a stream of the topology."""
    first = spec.max_msgs_per_subject == 1 and spec.discard_new_per_subject
    return Stream(spec.name, first_write_wins=first, dedupe_s=spec.duplicate_window_s)


def bucket_of(name: str) -> Stream:
    """The model of a bucket."""
    return Stream(kv_stream(name), bucket=True, dedupe_s=10.0 if name in ("nodes", "leases") else 30.0)


def missing(name: str) -> NotFound:
    """What the server says about a stream that is not there."""
    return NotFound(f"stream not found: {name}", stream=name, **_CODE)


_CODE: dict[str, Any] = {"server_code": 10059}
