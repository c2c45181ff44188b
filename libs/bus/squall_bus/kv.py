"""Key-value buckets on raw streams: one message per key, compare-and-set by the revision of the key's last message."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from squall_bus import reading
from squall_bus.errors import KeyExists, NotFound, WrongRevision
from squall_bus.link import Link
from squall_bus.publishing import Publisher
from squall_bus.records import Entry, Range, Record, Stored
from squall_bus.together import write_together
from squall_bus.watching import Watch
from squall_bus.wire import BadMessage
from squall_contracts.subjects import kv_stream, kv_subject
from squall_contracts.topology import Topology

DEADLINE_S = 15.0
TOGETHER_S = 5.0
GRAVE_S = 600.0
"""How long the mark of a deleted key is kept. Watchers that were away longer read everything again anyway."""
OPERATION = "KV-Operation"
_KEY = re.compile(r"[-/_=a-zA-Z0-9]+(\.[-/_=a-zA-Z0-9]+)*")
_EXPECT = "Nats-Expected-Last-Subject-Sequence"


@dataclass(frozen=True, slots=True)
class KeyWrite:
    """One of several writes that are made together."""

    key: str
    value: bytes
    revision: int
    """The key's last one, also of the mark of a deleted key; 0 = there is none."""
    ttl_s: float | None = None
    removes: bool = False
    """The key is gone with this write; the value is kept with its mark, for whoever reads that."""


class KeyValue:
    """One bucket."""

    def __init__(self, link: Link, publisher: Publisher, topology: Topology, bucket: str) -> None:
        if all(spec.name != bucket for spec in topology.buckets):
            raise NotFound(f"no bucket {bucket} in the topology", bucket=bucket)
        self.bucket = bucket
        self._link = link
        self._publisher = publisher
        self._stream = kv_stream(bucket)
        self._stem = kv_subject(bucket, "")

    # ------------------------------------------------------------------ reading

    async def get(self, key: str, *, from_leader: bool = False) -> Entry | None:
        """The value of a key; None when it was never set, deleted or is expired. `from_leader` as in `Bus.get_last`."""
        stored = await reading.get_last(self._link, self._stream, self._subject(key), from_leader)
        return None if stored is None else self._entry(stored)

    async def revision(self, key: str) -> tuple[int, bool]:
        """The key's last revision as its leader knows it, 0 for none; and whether the key is there."""
        stored = await reading.get_last(self._link, self._stream, self._subject(key), from_leader=True)
        return (0, False) if stored is None else (stored.seq, OPERATION not in stored.headers)

    async def last_known(self, keys: Sequence[str]) -> list[tuple[int, Entry | None]]:
        """Each key's last revision, 0 for none, and its entry if it is there; one read for all of them.

        As any server knows them, which may not have heard of the newest: for writes that are only made at these
        revisions."""
        subjects = [self._subject(key) for key in keys]
        found = await reading.get_many(self._link, self._stream, subjects)
        stored = (found.get(subject) for subject in subjects)
        return [(0, None) if each is None else (each.seq, self._entry(each)) for each in stored]

    async def entries(self, prefix: str = "") -> list[Entry]:
        """All keys that start with `prefix`, in the order of their last change."""
        found: dict[str, Entry] = {}
        wanted = Range(self._stream, self._stem + wildcard(prefix))
        async for stored in reading.read_range(self._link, wanted):
            found.pop(stored.subject, None)
            entry = self._entry(stored)
            if entry is not None and entry.key.startswith(prefix):
                found[stored.subject] = entry
        return list(found.values())

    def watch(self, prefix: str = "") -> Watch:
        """`async with kv.watch() as w: async for change in w:` gives every present value, then one change with
        `synced=True`, then each change as it happens. After a reconnect everything is read again and the differences
        are given; ends of keys perhaps twice. Keys that expire by TTL send nothing: poll their deadlines."""
        return Watch(self._link, self._stream, self._stem, prefix)

    def _subject(self, key: str) -> str:
        if not _KEY.fullmatch(key):
            raise BadMessage(f"not a key: {key!r}", bucket=self.bucket)
        return self._stem + key

    def _entry(self, stored: Stored) -> Entry | None:
        if OPERATION in stored.headers:
            return None
        return Entry(stored.subject[len(self._stem) :], stored.data, stored.seq, stored.stored_at)

    # ------------------------------------------------------------------ writing

    async def put(self, key: str, value: bytes, ttl_s: float | None = None, *, msg_id: str | None = None) -> int:
        """Set a key, whatever it was; its new revision. With the same msg id a second time it changes nothing (within
        the bucket's duplicate window, and as long as the server remembers)."""
        return await self._write(key, value, {}, ttl_s, msg_id)

    async def create(self, key: str, value: bytes, ttl_s: float | None = None) -> int:
        """Set a key that is not there. KeyExists otherwise. The mark of a deleted key is not a key."""
        try:
            return await self._write(key, value, {_EXPECT: "0"}, ttl_s)
        except WrongRevision:
            stored = await reading.get_last(self._link, self._stream, self._subject(key), from_leader=True)
        if stored is not None and OPERATION not in stored.headers:
            raise KeyExists(f"{self.bucket}/{key} exists", key=key)
        revision = 0 if stored is None else stored.seq
        try:
            return await self._write(key, value, {_EXPECT: str(revision)}, ttl_s)
        except WrongRevision as error:
            raise KeyExists(f"{self.bucket}/{key} exists", key=key) from error

    async def update(self, key: str, value: bytes, revision: int, ttl_s: float | None = None) -> int:
        """Set a key if its revision is still `revision`. WrongRevision otherwise."""
        return await self._write(key, value, {_EXPECT: str(revision)}, ttl_s)

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Remove a key; with `revision` only if it is still that one."""
        headers = {OPERATION: "DEL"}
        if revision is not None:
            headers[_EXPECT] = str(revision)
        await self._write(key, b"", headers, GRAVE_S)

    async def write_together(self, writes: Sequence[KeyWrite]) -> list[int]:
        """All of these, or none, each only if its key is still at its revision; the new revisions. Sent once: put a key
        of your own among them (revision 0), and read that one after `PublishUnknown`. Raises `WrongRevision`."""
        records = []
        for write in writes:
            headers = {_EXPECT: str(write.revision), **({OPERATION: "DEL"} if write.removes else {})}
            records.append(Record(self._subject(write.key), write.value, headers, None, write.ttl_s))
        return await write_together(self._link, records, TOGETHER_S)

    async def _write(
        self, key: str, value: bytes, headers: dict[str, str], ttl_s: float | None, msg_id: str | None = None
    ) -> int:
        record = Record(self._subject(key), value, headers or None, msg_id, ttl_s)
        return (await self._publisher.publish(record, DEADLINE_S)).seq


def wildcard(prefix: str) -> str:
    """The narrowest subject filter that has every key with this prefix."""
    return prefix[: prefix.rfind(".") + 1] + ">"
