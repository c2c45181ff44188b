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
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar
from urllib.parse import urlsplit

from squall.errors import DataLossError, ServiceError, SquallError
from squall.http_api import parse_blob_ref
from squall_service.failpoints import failpoint_disk

CHUNK_BYTES = 1 << 20
PARALLEL = 8
TIMEOUT_S = 60.0
RETRY_DELAYS_S = (0.1, 0.5, 2.0, 5.0)
"""A gateway that restarts is back within seconds; an attempt must not be lost to that, nor to a disk that was full."""

T = TypeVar("T")


class BlobStore(Protocol):
    """Where blobs are. Methods block."""

    def get(self, sha256: str, target: BinaryIO) -> None:
        """Write the blob to `target`. Raises `DataLossError` if there is none, `ServiceError` if it may come."""

    def put(self, sha256: str, size: int, source: Callable[[], BinaryIO]) -> None:
        """Store the blob durably. Putting it again is nothing."""


class FolderStore:
    """A folder that the gateway uses too: `<folder>/<first two hex digits>/<sha256>`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256

    def get(self, sha256: str, target: BinaryIO) -> None:
        try:
            with self._path(sha256).open("rb") as source:
                _copy(source, target)
        except FileNotFoundError as error:
            raise DataLossError(f"blob {sha256} does not exist") from error

    def put(self, sha256: str, size: int, source: Callable[[], BinaryIO]) -> None:
        path = self._path(sha256)
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with source() as opened:
            _write_durably(path, lambda target: _copy(opened, target))


class GatewayStore:
    """The gateway's `PUT` and `GET /v1/blobs/{sha256}`."""

    def __init__(self, url: str, token: str) -> None:
        self._url = urlsplit(url)
        self._headers = {"Authorization": f"Bearer {token}"}

    def get(self, sha256: str, target: BinaryIO) -> None:
        with self._answer("GET", sha256, None, {}) as answer:
            while chunk := answer.read(CHUNK_BYTES):
                target.write(chunk)

    def put(self, sha256: str, size: int, source: Callable[[], BinaryIO]) -> None:
        with source() as opened, self._answer("PUT", sha256, opened, {"Content-Length": str(size)}) as answer:
            answer.read()

    @contextlib.contextmanager
    def _answer(
        self, method: str, sha256: str, body: BinaryIO | None, headers: dict[str, str]
    ) -> Iterator[http.client.HTTPResponse]:
        connection = self._connect()
        try:
            connection.request(
                method, f"{self._url.path.rstrip('/')}/v1/blobs/{sha256}", body, {**self._headers, **headers}
            )
            answer = connection.getresponse()
            _check(method, sha256, answer)
            yield answer
        except (OSError, http.client.HTTPException) as error:
            raise ServiceError(f"{method} of blob {sha256[:12]} at the gateway failed: {error!r}") from error
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        if self._url.scheme == "unix":
            return _UnixConnection(self._url.path)
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        host = self._url.hostname or "127.0.0.1"
        return kind(host, self._url.port, timeout=TIMEOUT_S, blocksize=CHUNK_BYTES)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S, blocksize=CHUNK_BYTES)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def _check(method: str, sha256: str, answer: http.client.HTTPResponse) -> None:
    if answer.status < 300:
        return
    text = answer.read(2000).decode("utf-8", "replace")
    if answer.status == 404:
        raise DataLossError(f"blob {sha256} does not exist")
    raise ServiceError(f"{method} of blob {sha256[:12]}: the gateway answered {answer.status}: {text}")


class Blobs:
    """The store from the event loop's side: threads, retries, hashes."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._slots = asyncio.Semaphore(PARALLEL)

    async def fetch(self, ref: str, path: Path) -> None:
        """Bring the blob of a reference (`<sha256>:<bytes>`) to `path`, whole and verified, or not at all."""
        sha256, size = parse_blob_ref(ref)
        await self._try(lambda: self._fetch(sha256, size, path))

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
