"""Dicts: operations on single keys, and looks at all of them. Owns the bucket `dicts`; values are opaque here.

A key is one message: the server orders its writes, so `put` with `absent` has one winner among any number of callers.
What a request did that cannot be done twice (`pop`, `put` with `absent`) is written together with its receipt, so that
the same request, repeated because its answer was lost, is told the same.
"""

from __future__ import annotations

import asyncio
import math
import re
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import Any, NamedTuple

from squall.errors import InvalidError, RequestSizeError
from squall.http_api.protocol import frames
from squall.spec import INLINE_LIMIT_BYTES
from squall_bus import GRAVE_S, Bus, BusError, Entry, KeyExists, KeyWrite, PublishUnknown, WrongRevision
from squall_contracts import subjects
from squall_contracts.objects import DICTS, RECEIPT_S, DictEntry, dict_key, dict_keys, receipt_key
from squall_gateway.blob_places import BlobPlaces
from squall_gateway.call_headers import blob_size, check_blob_ref
from squall_service.clock import Clock

KEPT_S = 7 * 24 * 3600.0
"""Without access."""
REFRESH_S = 24 * 3600.0
"""A value that is read and was written so long ago is kept anew."""
MAX_VALUE_BYTES = 100 << 20
MAX_KEY_BYTES = 16 * 1024
MAX_OPS = 10_000
AT_ONCE = 256
REQUEST = re.compile(r"[A-Za-z0-9-]{0,64}")
"""A request's own id: part of a key."""
TRIES = 16
LOOK_FIRST_S = 10.0
"""After a key that was to be new was found there: how long keys are looked at before they are set."""
MOST_CLAIMED = 10_000
PAGE = 500


class Op(NamedTuple):
    """One operation of a request."""

    what: str
    key: bytes
    value: bytes
    blob: str | None
    absent: bool
    request: str


class Outcome(NamedTuple):
    """What came of it."""

    meta: dict[str, Any]
    value: bytes = b""


Together = Callable[[str, str, Sequence[Op]], Awaitable[list[Outcome | None]]]
"""Does some of them at once; None for each that has to go alone."""


@dataclass(frozen=True, slots=True)
class Dicts:
    """The contents of all dicts."""

    bus: Bus
    blobs: BlobPlaces
    clock: Clock
    claimed: dict[str, float] = field(default_factory=dict)
    """Dicts in which a key that was to be new was there, or had been, and when that was last seen."""

    async def do(self, workspace: str, object_id: str, ops: Sequence[Op]) -> list[Outcome]:
        """Operations on different keys, at the same time. Those on one key have no order among them."""
        outcomes: list[Outcome] = []
        for first in range(0, len(ops), AT_ONCE):
            part = ops[first : first + AT_ONCE]
            outcomes += await asyncio.gather(*(self._one(workspace, object_id, op) for op in part))
        await told_blobs(self.blobs, workspace, outcomes)
        return outcomes

    async def do_apart(self, workspace: str, object_id: str, ops: Sequence[Op]) -> list[Outcome | BaseException]:
        """The same, of several callers: what goes wrong with one is its own outcome. Pops share a write, and so do puts
        with `absent`; with a refused write each of them goes alone. What touches a key of theirs comes after them."""
        found: dict[int, Outcome | BaseException] = {}

        async def alone(places: Iterable[int]) -> None:
            left = [place for place in places if place not in found]
            each = (self._one(workspace, object_id, ops[place]) for place in left)
            found.update(zip(left, await asyncio.gather(*each, return_exceptions=True), strict=True))

        async def shared(together: Together, places: Sequence[int]) -> None:
            try:
                done = await together(workspace, object_id, [ops[place] for place in places])
            except BusError:
                pass  # what of it is stored has its receipt, for which those who go alone look
            else:
                told = zip(places, done, strict=True)
                found.update({place: outcome for place, outcome in told if outcome is not None})
            await alone(places)

        groups = list(_groups(ops))
        keys = {ops[place].key for _, places in groups for place in places}
        kinds: dict[str, Together] = {"pop": self._pop_together, "put": self._claim_together}
        await asyncio.gather(
            alone(place for place, op in enumerate(ops) if op.key not in keys),
            *(shared(kinds[what], places) for what, places in groups),
        )
        await alone(range(len(ops)))
        outcomes = [found[place] for place in range(len(ops))]
        await told_blobs(self.blobs, workspace, [each for each in outcomes if isinstance(each, Outcome)])
        return outcomes

    async def _one(self, workspace: str, object_id: str, op: Op) -> Outcome:
        key, receipt = _names(workspace, object_id, op)
        match op.what:
            case "get":
                return await self._get(key)
            case "put":
                if op.blob is not None:
                    await self.blobs.of(workspace).require(*frame_blob(op.blob))
                return await self._put(key, receipt, op)
            case "pop":
                return await self._pop(key, receipt)
            case _:
                raise InvalidError(f"a dict has no operation {op.what!r}")

    async def _get(self, key: str) -> Outcome:
        entry = await self.bus.kv(DICTS).get(key, from_leader=True)
        if entry is None:
            return Outcome({"found": False})
        if self.clock.now() - entry.created_at > REFRESH_S:
            await self._refresh(entry)
        return _told(DictEntry.decode(entry.value))

    async def _refresh(self, entry: Entry) -> None:
        try:
            await self.bus.kv(DICTS).update(entry.key, entry.value, entry.revision, KEPT_S)
        except WrongRevision:
            pass  # it was changed meanwhile, and is kept by that

    async def _put(self, key: str, receipt: str, op: Op) -> Outcome:
        data = DictEntry(op.key, op.value, op.blob, op.request).encode()
        bucket = self.bus.kv(DICTS)
        if not op.absent:
            await bucket.put(key, data, KEPT_S, msg_id=receipt or None)
            return Outcome({"put": True})
        if receipt:
            return Outcome({"put": await self._put_once(key, receipt, data)})
        try:
            await bucket.create(key, data, KEPT_S)
        except KeyExists:
            return Outcome({"put": False})
        return Outcome({"put": True})

    async def _put_once(self, key: str, receipt: str, data: bytes) -> bool:
        """Whether this request has set the key, now or when it was sent before."""
        bucket, revision = self.bus.kv(DICTS), 0
        proof = DictEntry(b"", b"").encode()
        for _ in range(TRIES):
            try:
                await bucket.write_together(
                    [KeyWrite(key, data, revision, KEPT_S), KeyWrite(receipt, proof, 0, RECEIPT_S)]
                )
            except (WrongRevision, PublishUnknown):
                pass
            else:
                return True
            revision, there = await bucket.revision(key)
            # After it: a write without an answer may have set the key just now.
            if await bucket.get(receipt, from_leader=True) is not None:
                return True
            if there:
                return False
        raise _always_changed()

    async def _claim_together(self, workspace: str, object_id: str, ops: Sequence[Op]) -> list[Outcome | None]:
        """Puts with `absent` of different keys in one write, as far as they are not there; None for who goes alone.

        Most are of new keys: they are written as such, and looked at only where that was refused a short while ago."""
        bucket, names = self.bus.kv(DICTS), [_names(workspace, object_id, op) for op in ops]
        now = self.clock.monotonic()
        if self.claimed.get(object_id, -math.inf) <= now - LOOK_FIRST_S:
            try:
                await bucket.write_together(_claims(zip(ops, names, repeat(0), strict=False)))
            except WrongRevision:
                if len(self.claimed) >= MOST_CLAIMED:
                    self.claimed.clear()
                self.claimed[object_id] = now
            else:
                return [Outcome({"put": True})] * len(ops)
        looks = await bucket.last_known([key for key, _ in names])
        absent = [place for place, (_, entry) in enumerate(looks) if entry is None]
        if absent:
            await bucket.write_together(_claims((ops[p], names[p], looks[p][0]) for p in absent))
        outcomes: list[Outcome | None] = [None] * len(ops)
        for place in absent:
            outcomes[place] = Outcome({"put": True})
        return outcomes

    async def _pop_together(self, workspace: str, object_id: str, ops: Sequence[Op]) -> list[Outcome | None]:
        """Pops of different keys in one write, as far as they are there; None for who goes alone."""
        bucket = self.bus.kv(DICTS)
        names = [_names(workspace, object_id, op) for op in ops]
        entries = [entry for _, entry in await bucket.last_known([key for key, _ in names])]
        writes = list[KeyWrite]()
        for entry, (_, receipt) in zip(entries, names, strict=True):
            if entry is not None:
                writes += _removal(entry, receipt)
        if writes:
            await bucket.write_together(writes)
        return [None if entry is None else _told(DictEntry.decode(entry.value)) for entry in entries]

    async def _pop(self, key: str, receipt: str) -> Outcome:
        bucket = self.bus.kv(DICTS)
        for _ in range(TRIES):
            entry = await bucket.get(key, from_leader=True)
            try:
                if entry is not None:
                    await self._remove(entry, receipt)
                    return _told(DictEntry.decode(entry.value))
            except (WrongRevision, PublishUnknown):
                pass
            popped = await bucket.get(receipt, from_leader=True) if receipt else None
            if popped is not None:
                return _told(DictEntry.decode(popped.value))  # by this request, whose answer was lost
            if entry is None:
                return Outcome({"found": False})
        raise _always_changed()

    async def _remove(self, entry: Entry, receipt: str) -> None:
        bucket = self.bus.kv(DICTS)
        if not receipt:
            await bucket.delete(entry.key, entry.revision)
            return
        await bucket.write_together(_removal(entry, receipt))

    # ------------------------------------------------------------------ all keys

    async def page(self, workspace: str, object_id: str, after: int, *, keys_only: bool) -> tuple[list[Outcome], int]:
        """Some keys, and where to go on; 0 = that was all."""
        stream = subjects.kv_stream(DICTS)
        wanted = subjects.kv_subject(DICTS, dict_keys(workspace, object_id) + "*")
        found: list[Outcome] = []
        async for stored in self.bus.read(stream, wanted, start_seq=after + 1):
            if "KV-Operation" not in stored.headers:
                entry = DictEntry.decode(stored.data)
                meta = {**_told(entry).meta, "size": len(entry.key)}
                found.append(Outcome(meta, entry.key if keys_only else entry.key + entry.value))
            if len(found) >= PAGE and stored.pending:
                after = stored.seq
                break
        else:
            after = 0
        await told_blobs(self.blobs, workspace, found)
        return found, after

    async def count(self, workspace: str, object_id: str) -> int:
        """How many keys there are."""
        wanted = subjects.kv_subject(DICTS, dict_keys(workspace, object_id) + "*")
        total = 0
        async for stored in self.bus.read(subjects.kv_stream(DICTS), wanted):
            total += "KV-Operation" not in stored.headers
        return total

    async def clear(self, workspace: str, object_id: str) -> None:
        """Remove every key."""
        wanted = subjects.kv_subject(DICTS, dict_keys(workspace, object_id) + "*")
        await self.bus.purge(subjects.kv_stream(DICTS), wanted)


def _names(workspace: str, object_id: str, op: Op) -> tuple[str, str]:
    """Where an operation's key lies, and its receipt."""
    key = dict_key(workspace, object_id, op.key)
    # With the key: some clients have one id for all operations of a request.
    own = f"{op.request}-{key[-16:]}"
    return key, receipt_key(workspace, object_id, own) if op.request else ""


def _groups(ops: Sequence[Op]) -> Iterator[tuple[str, list[int]]]:
    """Places of operations of one kind that go together, at least two, each of a key that is in no other group."""
    by_key: dict[bytes, int] = {}
    for place, op in enumerate(ops):
        if op.request and (op.what == "pop" or (op.what == "put" and op.absent and op.blob is None)):
            by_key.setdefault(op.key, place)
    for what in ("pop", "put"):
        places = iter([place for place in by_key.values() if ops[place].what == what])
        while len(part := list(islice(places, AT_ONCE))) > 1:
            yield what, part


def _claims(wanted: Iterable[tuple[Op, tuple[str, str], int]]) -> list[KeyWrite]:
    """Each with its receipt; the number is the revision that its key has."""
    writes, proof = list[KeyWrite](), DictEntry(b"", b"").encode()
    for op, (key, receipt), revision in wanted:
        data = DictEntry(op.key, op.value, op.blob, op.request).encode()
        writes += [KeyWrite(key, data, revision, KEPT_S), KeyWrite(receipt, proof, 0, RECEIPT_S)]
    return writes


def _removal(entry: Entry, receipt: str) -> list[KeyWrite]:
    removed = KeyWrite(entry.key, b"", entry.revision, GRAVE_S, removes=True)
    return [removed, KeyWrite(receipt, entry.value, 0, RECEIPT_S)]


def _always_changed() -> InvalidError:
    return InvalidError("the key was changed by others all the time", fix="Try again.")


def _told(entry: DictEntry) -> Outcome:
    return Outcome({"found": True, "blob": entry.blob}, entry.value)


async def told_blobs(blobs: BlobPlaces, workspace: str, told: Sequence[Outcome]) -> None:
    """Let the workspace have the blobs of entries and items that it is told. What was taken out must be told even while
    the store is away: whoever fetches the blob is told about that."""
    if named := [blob for outcome in told if (blob := outcome.meta.get("blob")) is not None]:
        await blobs.told(workspace, named)


def frame_blob(ref: str) -> tuple[str, int]:
    """The blob that a value is in. Raises `InvalidError`, `RequestSizeError`."""
    sha256, _, _ = check_blob_ref(ref).partition(":")
    if blob_size(ref) > MAX_VALUE_BYTES:
        raise RequestSizeError(f"a value of a dict can have {MAX_VALUE_BYTES >> 20} MiB", fix="Use a Volume.")
    return sha256, blob_size(ref)


def read_ops(body: bytes) -> list[Op]:
    """The operations in a request's body. Raises `InvalidError`, `RequestSizeError`."""
    try:
        decoder = frames.Decoder()
        found = decoder.feed(body)
        if decoder.pending_bytes:
            raise frames.BadFrame("the last frame is cut")
        ops = [op_of(frame) for frame in found]
    except (frames.BadFrame, ValueError, TypeError, KeyError) as error:
        raise InvalidError(f"the body is not frames of operations: {error}") from error
    if not 0 < len(ops) <= MAX_OPS:
        raise RequestSizeError(f"a request can have 1 to {MAX_OPS} operations", fix="Send fewer at once.")
    return ops


def op_of(frame: frames.Frame) -> Op:
    """The operation in a frame. Raises `RequestSizeError`; `ValueError`, `TypeError`, `KeyError` for what is none."""
    meta = frame.meta
    key, blob = b64decode(meta["key"], validate=True), meta.get("blob")
    if len(key) > MAX_KEY_BYTES:
        raise RequestSizeError(f"an encoded key has {len(key)} bytes, more than {MAX_KEY_BYTES}")
    if len(frame.payload) > INLINE_LIMIT_BYTES:
        raise RequestSizeError(f"an inline value has {len(frame.payload)} bytes, more than {INLINE_LIMIT_BYTES}")
    if blob is not None and not isinstance(blob, str):
        raise ValueError("blob is not text")
    request = str(meta.get("request", ""))
    if not REQUEST.fullmatch(request):
        raise ValueError("a request's id has letters, digits and hyphens, 64 at most")
    return Op(str(meta["op"]), key, bytes(frame.payload), blob, meta.get("absent") is True, request)
