"""The plain values that go into and come out of the bus. No I/O, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from squall_bus.wire import parse_headers

Headers = Mapping[str, str]

PAGE = 512
"""Messages of one request of a read."""


@dataclass(frozen=True, slots=True)
class Record:
    """One message to publish into a stream."""

    subject: str
    data: bytes
    headers: Headers | None = None
    msg_id: str | None = None
    """Repeats inside the stream's duplicate window are answered as duplicates, not stored again."""
    ttl_s: float | None = None
    """The server removes the message after this time, rounded up to whole seconds."""


@dataclass(frozen=True, slots=True)
class Published:
    """The server has the record on disk."""

    stream: str
    seq: int
    duplicate: bool = False
    """True when a record with this msg id was there already; `seq` is then that record's."""


class Message:
    """One message from a plain subscription or a reply. Headers are parsed when they are looked at."""

    __slots__ = ("data", "raw_headers", "reply", "subject")

    def __init__(self, subject: str, reply: str, data: bytes, raw_headers: bytes) -> None:
        self.subject = subject
        self.reply = reply
        self.data = data
        self.raw_headers = raw_headers

    @property
    def headers(self) -> dict[str, str]:
        return parse_headers(self.raw_headers)

    def __repr__(self) -> str:
        return f"Message({self.subject!r}, {len(self.data)} bytes)"


@dataclass(frozen=True, slots=True)
class Stored:
    """One message as a stream holds it."""

    subject: str
    data: bytes
    headers: dict[str, str]
    seq: int
    stored_at: float
    """Unix seconds, the server's clock."""
    pending: int = 0
    """Only in `Bus.read`: how many matching messages were left after this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sourcing:
    """How a stream takes over the messages of another one."""

    lag: int
    """How many messages the other one is ahead. Says 0 as well while the server does not take over anything."""
    seq: int
    """Of the other stream: what was taken over last; 0 = not known."""
    silent_s: float | None
    """Since the server has heard of the other stream, which speaks every second; None = not since it was started."""
    error: str
    """Why the server's last try to begin failed; it waits 12 s and more before the next (server 2.15.1)."""


@dataclass(frozen=True, slots=True)
class StreamInfo:
    messages: int
    bytes: int
    first_seq: int
    last_seq: int
    subjects: dict[str, int] = field(default_factory=dict)
    """Messages per subject; only filled when `subjects_filter` was given."""
    sources: dict[str, Sourcing] = field(default_factory=dict)
    """By name of the sourced stream."""

    @property
    def others(self) -> int:
        """Messages that `subjects_filter` does not match, without listing them. Counted one after the other: may be one
        too few for a moment."""
        return self.messages - sum(self.subjects.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreInfo:
    """What our account has in the server's files."""

    used_bytes: int
    limit_bytes: int | None
    """Of the account; None when it has none. The server's own `max_file` cannot be seen from here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSpec:
    """One durable pull consumer."""

    name: str
    filter_subject: str
    ack_wait_s: float = 8.0
    max_ack_pending: int = -1
    max_deliver: int = -1
    prioritized: bool = True
    """Priority group `g`: local agents pull with priority 0, remote ones with 1. Cannot be changed later."""
    max_waiting: int = 4096
    """Open pulls; the server's default of 512 cannot be raised later."""
    only_new: bool = False
    """Begins with what is stored after it was made. Cannot be changed later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerInfo:
    name: str
    pending: int
    """Not delivered yet."""
    ack_pending: int
    """Delivered and neither acked nor given back."""
    waiting: int
    """Open pulls."""
    ack_floor_seq: int
    delivered_seq: int
    filter_subject: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """The current value of one key."""

    key: str
    value: bytes
    revision: int
    created_at: float


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a watch."""

    key: str
    value: bytes | None
    """None = the key is gone."""
    revision: int
    synced: bool = False
    """Marks, once, that all values that were there at the start have been given. `key` is then empty."""


@dataclass(slots=True)
class BusStats:
    """Counters since the connection was made."""

    published: int = 0
    """Records that were acknowledged."""
    writes: int = 0
    """Writes they took: a batch is one write."""
    batches_refused: int = 0
    publish_retries: int = 0
    publish_unknown: int = 0
    soon_published: int = 0
    soon_dropped: int = 0
    delivered: int = 0
    sent_dropped: int = 0
    reconnects: int = 0
    callback_errors: int = 0
    denied: int = 0
    """What the server refused because our user has no right to it."""


@dataclass(frozen=True, slots=True)
class Range:
    """What part of a stream to read."""

    stream: str
    filter_subject: str
    start_seq: int = 1
    headers_only: bool = False
    page: int = PAGE
    """Messages of one request."""
