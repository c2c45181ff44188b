"""Named objects that programs keep on the server, and what is in a dict or a queue."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

from squall.spec import digest
from squall_contracts.envelope import HotMessage, Message

OBJECTS, DICTS = "objects", "dicts"
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
