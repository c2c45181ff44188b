"""The blob store: payloads above the inline limit, and code, by their SHA-256. Streams; holds at most 2 MiB of each.

A blob is there in full, verified and on disk, or not at all. Which workspace has which: `blob_places`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import hashlib
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self, cast
from uuid import uuid4

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from squall.errors import InvalidError, NotFoundError, RequestSizeError, ServiceError, StorageFullError
from squall_contracts.blobs import blob_path

_SHA256 = re.compile(r"[0-9a-f]{64}")
CHUNK_BYTES = 1 << 20
WHOLE_BYTES = 2 << 20
"""Blobs up to this size are held in memory and written at once."""
MAX_KNOWN = 20_000
ABANDONED_S = 24 * 3600.0
RESERVE_BYTES = 256 << 20
"""Free space under which a folder counts as full: results of what was accepted must still fit."""


def check_sha256(sha256: str) -> str:
    """`sha256` itself. Raises `InvalidError` if it is not one."""
    if not _SHA256.fullmatch(sha256):
        raise InvalidError(f"{sha256!r} is not a SHA-256 in lower-case hex")
    return sha256


def remote_store(url: str, options: Mapping[str, str]) -> ObjectStore:
    """The store behind a URL. The options are the operator's, checked by obstore: unknown names raise there. Only an
    endpoint that says http:// is spoken to without TLS."""
    client = {"allow_http": True} if options.get("endpoint", "").startswith("http://") else {}
    return cast("ObjectStore", from_url(url, client_options=client, **options))  # type: ignore[call-overload]


class Sink(Protocol):
    """Where a blob is written; what was not finished is not there."""

    async def write(self, chunks: AsyncIterator[bytes], path: str) -> None:
        """Store all chunks at that path; if they raise, nothing."""


class Blobs:
    """One store, in a local folder or behind a URL."""

    def __init__(
        self, where: str, options: Mapping[str, str], limit_bytes: int, *, reserve_bytes: int = RESERVE_BYTES
    ) -> None:
        self._where = where
        self._options = options
        self._limit_bytes = limit_bytes
        self._reserve_bytes = reserve_bytes
        self._prefix = ""
        self._known: OrderedDict[str, int] = OrderedDict()
        """Sizes by path: of whatever place."""
        self._folder = None if "://" in where else Path(where).absolute()
        self._store: ObjectStore
        self._sink: Sink
        self._folder_sink: FolderSink | None = None
        if self._folder is not None:
            open_folder(self._folder)
            self._store = LocalStore(self._folder)
            self._sink = self._folder_sink = FolderSink(self._folder)
        else:
            self._store = remote_store(where, options)
            self._sink = StoreSink(self._store)

    def within(self, path: str) -> tuple[str, Mapping[str, str], int]:
        """Where a store below this one is, its options, and the room to be left on its disk."""
        return f"{self._where.rstrip('/')}/{path}", self._options, self._reserve_bytes

    def below(self, path: str) -> Self:
        """The blobs that lie below this path: the same store, and another place."""
        place = copy.copy(self)
        place._prefix = f"{self._prefix}{path}/"
        return place

    def _path(self, sha256: str) -> str:
        return self._prefix + blob_path(sha256)

    async def folders(self, path: str) -> list[str]:
        """The names of stores below this one."""
        with in_our_words():
            found = await obstore.list_with_delimiter_async(self._store, f"{path}/")
        return sorted(each.strip("/").rpartition("/")[2] for each in found["common_prefixes"])

    async def put(self, sha256: str, chunks: AsyncIterator[bytes]) -> int:
        """Store a blob and verify it; its size. Raises `InvalidError` when the content has another hash,
        `StorageFullError`, and `ServiceError` while the store does not answer."""
        check_sha256(sha256)
        held, size = await _start_of(chunks, min(WHOLE_BYTES, self._limit_bytes))
        with in_our_words():
            if self._folder_sink is not None and size <= min(WHOLE_BYTES, self._limit_bytes):
                await asyncio.to_thread(self._put_whole, self._folder_sink, held, sha256)
            else:
                size = await self._put_streamed(_after(held, chunks), sha256)
        self._remember(sha256, size)
        return size

    async def put_again(self, sha256: str, other: Blobs) -> None:
        """Have here what another place of this store has, without moving its bytes. It may be gone from there."""
        with in_our_words(), contextlib.suppress(FileNotFoundError):
            if self._folder_sink is not None:
                await asyncio.to_thread(self._folder_sink.link, other._path(sha256), self._path(sha256))
            else:
                await obstore.copy_async(self._store, other._path(sha256), self._path(sha256))

    def _put_whole(self, sink: FolderSink, parts: Sequence[bytes], sha256: str) -> None:
        """Everything in one trip to a thread instead of twelve, each of which costs 0.1 ms."""
        if full := self._full_folder():
            raise StorageFullError(full)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        check_digest(digest.hexdigest(), sha256)
        sink.write_whole(parts, self._path(sha256))

    async def _put_streamed(self, chunks: AsyncIterator[bytes], sha256: str) -> int:
        if full := await self.nearly_full():
            raise StorageFullError(full)
        checked = _Checked(chunks, sha256, self._limit_bytes)
        await self._sink.write(checked.stream(), self._path(sha256))
        return checked.size

    async def size(self, sha256: str) -> int | None:
        """Bytes of a blob; None when there is none."""
        known = self._known.get(self._path(check_sha256(sha256)))
        if known is not None:
            return known
        try:
            with in_our_words():
                meta = await obstore.head_async(self._store, self._path(sha256))
        except FileNotFoundError:
            return None
        self._remember(sha256, meta["size"])
        return meta["size"]

    async def require(self, sha256: str, size: int) -> None:
        """Raises `InvalidError` unless a blob of that size is there."""
        found = await self.size(sha256)
        if found is None:
            raise InvalidError(f"blob {sha256} is not there", fix="Upload it with PUT /v1/blobs/<sha256> first.")
        if found != size:
            raise InvalidError(f"blob {sha256} has {found} bytes, the reference says {size}")

    async def get(self, sha256: str) -> tuple[int, AsyncIterator[bytes]]:
        """Size and content of a blob. Raises `NotFoundError`."""
        try:
            with in_our_words():
                found = await obstore.get_async(self._store, self._path(check_sha256(sha256)))
        except FileNotFoundError:
            raise self._missing(sha256) from None
        return found.meta["size"], _as_bytes(found)

    async def read(self, sha256: str) -> bytes:
        """All of a blob that is known to be small enough. Raises `NotFoundError`."""
        if self._folder is None:
            _, content = await self.get(sha256)
            return b"".join([chunk async for chunk in content])
        try:
            return await asyncio.to_thread((self._folder / self._path(check_sha256(sha256))).read_bytes)
        except FileNotFoundError:
            raise self._missing(sha256) from None

    def _missing(self, sha256: str) -> NotFoundError:
        self._known.pop(self._path(sha256), None)
        return NotFoundError(f"there is no blob {sha256}", fix="It was never uploaded, or is expired.")

    async def nearly_full(self) -> str:
        """Why nothing more can be stored; empty when there is room (URLs: always)."""
        return "" if self._folder is None else await asyncio.to_thread(self._full_folder)

    def _full_folder(self) -> str:
        if self._folder is None:
            return ""
        free = shutil.disk_usage(self._folder).free
        return "" if free >= self._reserve_bytes else f"the disk of {self._folder} has {free >> 20} MiB left"

    def _remember(self, sha256: str, size: int) -> None:
        self._known[self._path(sha256)] = size
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)


@contextlib.contextmanager
def in_our_words() -> Iterator[None]:
    """What stores and disks say. Whoever asked tries again for a while: a store comes back, a disk has room again."""
    try:
        yield
    except BaseError as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ServiceError(
            f"the blob store does not do what it should: {lines[0][:300]}",
            fix="Try again; the operator sees to what SQUALL_GATEWAY_BLOBS names, and to its keys.",
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageFullError(f"the disk of the blobs is full: {error.strerror}") from error


async def _as_bytes(found: obstore.GetResult) -> AsyncIterator[bytes]:
    async for chunk in found.stream(CHUNK_BYTES):
        yield bytes(chunk)


class _Checked:
    """Chunks on their way to the store; the last step raises unless the whole is what its name says."""

    def __init__(self, chunks: AsyncIterator[bytes], sha256: str, limit_bytes: int) -> None:
        self._chunks = chunks
        self._sha256 = sha256
        self._limit_bytes = limit_bytes
        self.size = 0

    async def stream(self) -> AsyncIterator[bytes]:
        digest = hashlib.sha256()
        async for chunk in self._chunks:
            self.size += len(chunk)
            if self.size > self._limit_bytes:
                raise RequestSizeError(f"a blob of more than {self._limit_bytes} bytes")
            # 1 MiB takes 1 ms: long enough to leave the event loop to others (hashlib releases the lock).
            if len(chunk) >= CHUNK_BYTES // 4:
                await asyncio.to_thread(digest.update, chunk)
            else:
                digest.update(chunk)
            yield chunk
        check_digest(digest.hexdigest(), self._sha256)


def check_digest(found: str, sha256: str) -> None:
    """Raises `InvalidError` unless the content is what its name says."""
    if found != sha256:
        raise InvalidError(
            f"the content has SHA-256 {found}, not {sha256}",
            fix="Send the bytes whose hash is in the path; nothing was stored.",
        )


class FolderSink:
    """A folder: written beside, fsynced, then renamed into place."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _scratch(self, path: str) -> Path:
        return self._folder / "tmp" / f"{path.rpartition('/')[2]}.{uuid4().hex}"

    def _into_place(self, scratch: Path, path: str) -> None:
        _move(scratch, self._folder / path, self._folder)

    def link(self, source: str, path: str) -> None:
        """Blocks. The same file at a second path; a copy where that cannot be, as of a file of another user."""
        scratch = self._scratch(path)
        try:
            try:
                os.link(self._folder / source, scratch)
            except FileNotFoundError:
                raise
            except OSError:
                with (self._folder / source).open("rb") as content, scratch.open("xb") as target:
                    shutil.copyfileobj(content, target, CHUNK_BYTES)
                    target.flush()
                    os.fsync(target.fileno())
            self._into_place(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)  # of two names of one file a rename leaves both

    def write_whole(self, parts: Sequence[bytes], path: str) -> None:
        """Blocks; for what is small enough to be in memory."""
        scratch = self._scratch(path)
        try:
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                for part in parts:
                    _write_all(descriptor, part)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._into_place(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)

    async def write(self, chunks: AsyncIterator[bytes], path: str) -> None:
        """As they come."""
        scratch = self._scratch(path)
        try:
            descriptor = await asyncio.to_thread(os.open, scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                async for chunk in _joined(chunks):
                    await asyncio.to_thread(_write_all, descriptor, chunk)
                await asyncio.to_thread(os.fsync, descriptor)
            finally:
                os.close(descriptor)
            await asyncio.to_thread(self._into_place, scratch, path)
        finally:
            await asyncio.to_thread(scratch.unlink, missing_ok=True)


class StoreSink:
    """Any object store: one object, in parts when it is large; unfinished parts are given up."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def write(self, chunks: AsyncIterator[bytes], path: str) -> None:
        await obstore.put_async(self._store, path, chunks)


async def _start_of(chunks: AsyncIterator[bytes], limit_bytes: int) -> tuple[list[bytes], int]:
    """All chunks, or some more than `limit_bytes` of them; and their size."""
    held: list[bytes] = []
    size = 0
    async for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size > limit_bytes:
            break
    return held, size


async def _after(held: list[bytes], chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """What was taken already, then the rest."""
    yield b"".join(held)
    async for chunk in chunks:
        yield chunk


async def _joined(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """At least CHUNK_BYTES at once: HTTP bodies come in pieces of 64 KiB, and each write is a trip to a thread."""
    held: list[bytes] = []
    size = 0
    async for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size >= CHUNK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def open_folder(folder: Path) -> None:
    """Make the folder of a store. Raises `InvalidError` when that cannot be."""
    try:
        remove_abandoned(folder / "tmp")
    except OSError as error:
        raise InvalidError(
            f"blobs cannot be kept in {folder}: {error.strerror}",
            fix="Set SQUALL_GATEWAY_BLOBS to a folder that the gateway may write, or to the URL of an object store.",
        ) from error


def remove_abandoned(scratch: Path) -> None:
    """Make the folder of unfinished uploads, without those of a gateway that was killed."""
    scratch.mkdir(parents=True, exist_ok=True)
    changed: dict[Path, float] = {}
    for file in scratch.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another gateway is writing here now, and has finished it
            changed[file] = file.stat().st_mtime
    newest = max(changed.values(), default=0.0)
    for file, at in changed.items():
        if at < newest - ABANDONED_S:  # compared with each other, not with our clock
            file.unlink(missing_ok=True)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _move(scratch: Path, target: Path, top: Path) -> None:
    """Into place, and on disk: the file, its name, and the names of new folders. `top` is there already."""
    changed = [target.parent]
    while changed[-1] != top and not changed[-1].exists():
        changed.append(changed[-1].parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch.replace(target)
    for folder in changed:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
