"""Named objects that programs keep on the server, and what is in a dict or a queue."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

from squall.spec import digest
from squall_contracts.envelope import HotMessage, Message

OBJECTS, DICTS, TAKES = "objects", "dicts", "takes"
RECEIPT_S = 90.0
"""What came of a request that takes something away is kept for so long: its client repeats it for a minute. What was
taken lies on the disk until then."""
PREFIXES = {"dicts": "di", "queues": "qu", "volumes": "vo"}
"""Kinds of objects, and how their ids begin."""


@dataclass(frozen=True)
class ObjectRecord(Message):
    """One object. Bucket `objects`, under its id, and if it has a name also under that; owner: gateway. Without a name
    it lives as long as somebody renews it."""

    TYPE: ClassVar[str] = "object_record"

    object_id: str
    kind: str
    name: str
    workspace: str
    environment: str
    created_at: float


@dataclass(frozen=True)
class DictEntry(HotMessage):
    """A key of a dict and its value, as their program encoded them. Bucket `dicts`."""

    TYPE: ClassVar[str] = "dict_entry"

    key: bytes
    value: bytes
    blob: str | None = None
    """`<sha256>:<bytes>` when the value is in the blob store."""
    request: str = ""
    """By which it was written: a repeated request finds its own work."""


@dataclass(frozen=True)
class QueueItem(HotMessage):
    """An item of a queue, as its program encoded it. Subject `queues.r.<workspace>.<queue>.<partition>`."""

    TYPE: ClassVar[str] = "queue_item"

    value: bytes
    blob: str | None = None


@dataclass(frozen=True)
class QueueFront(HotMessage):
    """How far a partition of a queue is taken. Bucket `takes`, `<workspace>.<queue>.<partition>`; every write is a
    compare-and-set, together with the receipt of who took."""

    TYPE: ClassVar[str] = "queue_front"

    through: int
    """Sequence in QUEUES of the last item that is taken. Such items are removed afterwards."""


@dataclass(frozen=True)
class QueueTake(HotMessage):
    """What a request took from a queue. Bucket `takes`, under `receipts.<workspace>.<queue>.<request>`, for a while."""

    TYPE: ClassVar[str] = "queue_take"

    values: list[bytes]
    blobs: list[str | None]


def object_name_key(workspace: str, environment: str, kind: str, name: str) -> str:
    """Key of an object by its name."""
    return f"{objects_of(workspace, environment, kind)}{digest(name)[:24]}"


def objects_of(workspace: str, environment: str, kind: str) -> str:
    """Prefix of the keys of the named objects of one kind."""
    return f"name.{workspace}.{environment_token(environment)}.{kind}."


def environment_token(environment: str) -> str:
    """An environment as one part of a key: with dots it would begin like others, and end up in their lists."""
    return environment.replace(".", "=")


def object_id_key(workspace: str, object_id: str) -> str:
    """Key of an object by its id."""
    return f"id.{workspace}.{object_id}"


def dict_key(workspace: str, object_id: str, key: bytes) -> str:
    """Where a key of a dict lies."""
    return f"{dict_keys(workspace, object_id)}{hashlib.sha256(key).hexdigest()[:40]}"


def dict_keys(workspace: str, object_id: str) -> str:
    """Prefix of all keys of a dict."""
    return f"{workspace}.{object_id}."


def partition_token(partition: str) -> str:
    """A partition of a queue as a part of a subject."""
    return "p" + hashlib.sha256(partition.encode()).hexdigest()[:32]


def front_key(workspace: str, object_id: str, token: str) -> str:
    """Where it is written how far a partition is taken."""
    return f"{workspace}.{object_id}.{token}"


def receipt_key(workspace: str, object_id: str, request: str) -> str:
    """Where it is written what came of a request. One part more than the keys of a dict have."""
    return f"receipts.{workspace}.{object_id}.{request}"
