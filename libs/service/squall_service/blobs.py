"""Blobs: large payloads and code bundles by their SHA-256, at the gateway or in a folder shared on this machine.

Owns moving bytes between local files and the store, and checking that they are what their name says. Streams: a 256 MiB
payload costs one buffer. Blocking I/O runs in threads, at most `PARALLEL` at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import http.client
import io
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar, cast

from squall.errors import DataLossError, ServiceError, SquallError
from squall.http_api.protocol import Header, parse_blob_ref
from squall.http_api.routes import Route
from squall_contracts.blobs import blob_path, workspace_place
from squall_service.asking import CHUNK_BYTES, asked
from squall_service.failpoints import failpoint_disk

PARALLEL = 8
RETRY_DELAYS_S = (0.1, 0.5, 2.0, 5.0)
"""A gateway that restarts is back within seconds; an attempt must not be lost to that, nor to a disk that was full."""

T = TypeVar("T")


class BlobStore(Protocol):
    """Where blobs are. Methods block."""

    def get(self, sha256: str, target: BinaryIO) -> None:
        """Write the blob to `target`. Raises `DataLossError` if there is none, `ServiceError` if it may come."""

    def put(self, sha256: str, size: int, source: Callable[[], BinaryIO]) -> None:
        """Store the blob durably. Putting it again is nothing."""

    def of(self, workspace: str) -> BlobStore:
        """Where blobs are that records of the workspace name."""

    def of_volumes(self, workspace: str, token: str) -> BlobStore:
        """Where blocks of the workspace's volumes are read; `token` is one of that workspace."""


class FolderStore:
    """A folder that the gateway uses too."""

    def __init__(self, folder: Path, older: Path | None = None) -> None:
        self._folder = folder
        self._older = older
        """Where to look for what is not in the folder."""

    def of(self, workspace: str) -> BlobStore:
        return type(self)(self._folder / workspace_place(workspace), self._folder)

    def of_volumes(self, workspace: str, token: str) -> BlobStore:
        return type(self)(self._folder / "volumes" / workspace, self._folder)

    def _path(self, sha256: str) -> Path:
        return self._folder / blob_path(sha256)

    def get(self, sha256: str, target: BinaryIO) -> None:
        try:
            with self._open(sha256) as source:
                _copy(source, target)
        except FileNotFoundError as error:
            raise DataLossError(f"blob {sha256} does not exist") from error

    def _open(self, sha256: str) -> BinaryIO:
        try:
            return self._path(sha256).open("rb")
        except FileNotFoundError:
            if self._older is None:
                raise
            return (self._older / blob_path(sha256)).open("rb")

    def put(self, sha256: str, size: int, source: Callable[[], BinaryIO]) -> None:
        path = self._path(sha256)
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with source() as opened:
            _write_durably(path, lambda target: _copy(opened, target))


class GatewayStore:
    """The gateway's `PUT` and `GET /v1/blobs/{sha256}`."""

    def __init__(self, url: str, token: str, route: str = Route.BLOB, workspace: str = "") -> None:
        self._url = url
        self._route = route
        self._token = token
        self._headers = {"Authorization": f"Bearer {token}"}
        if workspace:
            self._headers[Header.WORKSPACE] = workspace

    def of(self, workspace: str) -> BlobStore:
        return GatewayStore(self._url, self._token, workspace=workspace)

    def of_volumes(self, workspace: str, token: str) -> BlobStore:
        return GatewayStore(self._url, token, Route.VOLUME_BLOCK)

    def get(self, sha256: str, target: BinaryIO) -> None:
        with self._answer("GET", sha256, None, {}) as answer:
            while chunk := answer.read(CHUNK_BYTES):
                target.write(chunk)
            if answer.length:  # a gateway that was stopped; http.client does not say so
                raise http.client.IncompleteRead(b"", answer.length)

    def put(self, sha256: str, size: int, source: Callable[[], BinaryIO]) -> None:
        with source() as opened, self._answer("PUT", sha256, opened, {"Content-Length": str(size)}) as answer:
            answer.read()

    @contextlib.contextmanager
    def _answer(
        self, method: str, sha256: str, body: BinaryIO | None, headers: dict[str, str]
    ) -> Iterator[http.client.HTTPResponse]:
        what = f"{method} of blob {sha256[:12]}"
        path = self._route.format(sha256=sha256)
        with asked(self._url, method, path, body, {**self._headers, **headers}, what) as answer:
            _check(what, sha256, answer)
            yield answer


def _check(what: str, sha256: str, answer: http.client.HTTPResponse) -> None:
    if answer.status < 300:
        return
    text = answer.read(2000).decode("utf-8", "replace")
    if answer.status == 404:
        raise DataLossError(f"blob {sha256} does not exist")
    raise ServiceError(f"{what}: the gateway answered {answer.status}: {text}")


class Blobs:
    """The store from the event loop's side: threads, retries, hashes."""

    def __init__(self, store: BlobStore, parallel: int = PARALLEL, *, slots: asyncio.Semaphore | None = None) -> None:
        self._store = store
        self._slots = slots or asyncio.Semaphore(parallel)

    def of(self, workspace: str) -> Blobs:
        """Those that records of a workspace name, in line with what else is moved here."""
        return Blobs(self._store.of(workspace), slots=self._slots)

    def of_volumes(self, workspace: str, token: str) -> Blobs:
        """Blocks of a workspace's volumes, in line with what else is fetched here."""
        return Blobs(self._store.of_volumes(workspace, token), slots=self._slots)

    def apart(self, parallel: int) -> Blobs:
        """The same store for other work: what waits in line here keeps nothing waiting there."""
        return Blobs(self._store, parallel)

    async def fetch(self, ref: str, path: Path) -> None:
        """Bring the blob of a reference (`<sha256>:<bytes>`) to `path`, whole and verified, or not at all."""
        sha256, size = parse_blob_ref(ref)
        await self._try(lambda: self._fetch(sha256, size, path))

    async def fetch_part(self, ref: str, path: Path, offset: int) -> None:
        """Write the blob of a reference into a file that is there, verified; raises if it is not what it should be.

        By its name: a thread runs on when its task is cancelled, and a descriptor could be another file's by then."""
        sha256, size = parse_blob_ref(ref)
        await self._try(lambda: self._fetch_part(sha256, size, path, offset))

    async def put_file(self, path: Path) -> tuple[str, int]:
        """Store a file; its digest and size. Returns when the store has it on disk."""
        sha256, size = await asyncio.to_thread(_digest, path)
        await self._try(lambda: self._store.put(sha256, size, lambda: path.open("rb")))
        return sha256, size

    async def put_bytes(self, payload: bytes) -> tuple[str, int]:
        """The same for bytes in memory."""
        sha256, size = hashlib.sha256(payload).hexdigest(), len(payload)
        await self._try(lambda: self._store.put(sha256, size, lambda: _memory(payload)))
        return sha256, size

    def _fetch(self, sha256: str, size: int, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            failpoint_disk()
            with part.open("wb") as target:
                self._store.get(sha256, target)
            found, found_size = _digest(part)
            if found != sha256 or size not in (0, found_size):
                raise DataLossError(f"blob {sha256} is damaged: it hashes to {found}, {found_size} bytes")
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)

    def _fetch_part(self, sha256: str, size: int, path: Path, offset: int) -> None:
        failpoint_disk()
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            part = _Part(descriptor, offset)
            self._store.get(sha256, cast("BinaryIO", part))
        finally:
            os.close(descriptor)
        found, found_size = part.digest.hexdigest(), part.at - offset
        if found != sha256 or found_size != size:
            raise DataLossError(f"blob {sha256} is damaged: it hashes to {found}, {found_size} bytes")

    async def _try(self, work: Callable[[], T]) -> T:
        async with self._slots:
            for delay_s in RETRY_DELAYS_S:
                try:
                    return await asyncio.to_thread(work)
                except (SquallError, OSError) as error:
                    if not _may_pass(error):
                        raise
                await asyncio.sleep(delay_s)
            return await asyncio.to_thread(work)


def _may_pass(error: SquallError | OSError) -> bool:
    """Whether it may go better in some seconds: a disk that is full soon has room again, or another node is asked."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return error.retryable


class _Part:
    """A place in a file that is written to from several threads."""

    def __init__(self, descriptor: int, offset: int) -> None:
        self._descriptor = descriptor
        self.at = offset
        self.digest = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        """Put it after what came before."""
        self.digest.update(chunk)
        left = memoryview(chunk)
        while left:
            written = os.pwrite(self._descriptor, left, self.at)
            self.at, left = self.at + written, left[written:]


def _memory(payload: bytes) -> BinaryIO:
    return io.BytesIO(payload)


def _digest(path: Path) -> tuple[str, int]:
    with path.open("rb") as source:
        sha256 = hashlib.file_digest(source, "sha256").hexdigest()
        return sha256, source.tell()


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while chunk := source.read(CHUNK_BYTES):
        target.write(chunk)


def _write_durably(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """A file that is there in full after a power cut, or not at all."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        failpoint_disk()
        with part.open("wb") as target:
            write(target)
            target.flush()
            os.fsync(target.fileno())
        part.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        part.unlink(missing_ok=True)
