"""What is in files: read from the bucket, ahead of whoever reads on; written to this machine first, then stored whole.

A file that is written is a nameless one in the spool folder until it is stored, so nothing is left of it by a crash.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import IO, NamedTuple

from squall_gpu_agent.buckets.store import Bucket, Entry

LEAST_BYTES, MOST_BYTES = 128 << 10, 8 << 20
"""Of one request to the bucket: random reads, and those that go on."""
AHEAD_BYTES = 256 << 20
"""In memory for all files that are read."""
WINDOWS = 3
NEAR_BYTES = 2 << 20
"""The kernel's own reading ahead asks for pieces in any order."""
RESERVE_BYTES = 1 << 30
"""Free space that writers leave on the disk: the machine's other work must not suffer."""
COPY_BYTES = 8 << 20


class Window(NamedTuple):
    """A part of an object that is here, or on its way."""

    start: int
    end: int
    data: Future[bytes]


class Reader:
    """One state of one object."""

    def __init__(self, bucket: Bucket, path: str, entry: Entry, executor: Executor, readers: Readers) -> None:
        self._bucket, self._path, self._entry = bucket, path, entry
        self._executor, self._readers = executor, readers
        self._windows: list[Window] = []
        self._size = LEAST_BYTES
        self._lock = threading.Lock()
        readers.add(self)

    def close(self) -> None:
        """Nobody reads it any more."""
        self._readers.remove(self)

    def drop(self) -> None:
        """Hold nothing in memory; who reads on has it fetched again."""
        with self._lock:
            self._windows = []

    def read(self, offset: int, size: int) -> bytes:
        """Less than `size` only at the end. Raises `OSError`."""
        end = min(offset + size, self._entry.size)
        parts: list[bytes] = []
        while offset < end:
            window = self._window(offset, end)
            self._readers.used(self, sum(each.end - each.start for each in self._windows))
            try:
                data = window.data.result()
            except OSError:
                with self._lock:
                    self._windows = [each for each in self._windows if each is not window]
                raise
            part = data[offset - window.start : end - window.start]
            if not part:
                raise OSError(errno.EIO, f"{self._path}: the bucket sent less than it has")
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _window(self, offset: int, end: int) -> Window:
        with self._lock:
            found = next((each for each in self._windows if each.start <= offset < each.end), None)
            if found is None:
                last = self._windows[-1].end if self._windows else 0
                goes_on = 0 <= offset - last <= NEAR_BYTES
                self._size = min(self._size * 2, self._readers.most()) if goes_on else LEAST_BYTES
                found = self._fetch(offset, max(end, offset + self._size))
            after = self._windows[-1].end
            if found is self._windows[-1] and self._size > LEAST_BYTES and after < self._entry.size:
                self._size = min(self._size * 2, self._readers.most())
                self._fetch(after, after + self._size)
            return found

    def _fetch(self, start: int, end: int) -> Window:
        end = min(end, self._entry.size)
        data = self._executor.submit(self._bucket.read, self._path, self._entry, start, end)
        window = Window(start, end, data)
        self._windows = [*self._windows[1 - WINDOWS :], window]
        return window


class Readers:
    """All there are: together they keep to a limit, however many a container opens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[Reader, int] = OrderedDict()
        """Bytes of each; who read last is the last."""
        self._bytes = 0

    def add(self, reader: Reader) -> None:
        """One more."""
        with self._lock:
            self._held[reader] = 0

    def remove(self, reader: Reader) -> None:
        """One less."""
        with self._lock:
            self._bytes -= self._held.pop(reader, 0)

    def used(self, reader: Reader, held: int) -> None:
        """It holds so many bytes now; those that did not read for the longest time give theirs up for it. Whoever calls
        has the lock of no reader."""
        idle: list[Reader] = []
        with self._lock:
            if reader not in self._held:
                return
            self._bytes += held - self._held[reader]
            self._held[reader] = held
            self._held.move_to_end(reader)
            for each, size in self._held.items():
                if self._bytes <= AHEAD_BYTES or each is reader:
                    break
                if size:
                    self._bytes -= size
                    idle.append(each)
            for each in idle:
                self._held[each] = 0
                self._held.move_to_end(each, last=False)
        for each in idle:
            each.drop()

    def most(self) -> int:
        """Bytes of one request."""
        return max(LEAST_BYTES, min(MOST_BYTES, AHEAD_BYTES // (WINDOWS * max(1, len(self._held)))))


class Written:
    """A file that is being written. Whoever calls has its lock."""

    def __init__(self, bucket: Bucket, spool: Path, path: str, base: Entry | None) -> None:
        """`base`: what is there already; fetched when the first byte is needed."""
        self._bucket, self._spool = bucket, spool
        self._path, self._base = path, base
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=spool)  # noqa: SIM115 — closed by `close`
        self.size = base.size if base else 0
        self.dirty = base is None

    def read(self, offset: int, size: int) -> bytes:
        """As it is now."""
        self.load()
        return os.pread(self._file.fileno(), size, offset)

    def write(self, offset: int, data: memoryview) -> int:
        """Raises ENOSPC when the machine has no room."""
        self.load()
        self._check_room(len(data))
        done = os.pwrite(self._file.fileno(), data, offset)
        self.size = max(self.size, offset + done)
        self.dirty = True
        return done

    def resize(self, size: int) -> None:
        """Cut it, or fill it up with zeros."""
        if size:
            self.load()
            self._check_room(0)
        self._base = None
        os.ftruncate(self._file.fileno(), size)
        self.size, self.dirty = size, True

    def mtime(self) -> float:
        """Of the last change."""
        return os.fstat(self._file.fileno()).st_mtime

    def store(self, path: str) -> Entry:
        """Put it into the bucket. Raises `OSError`, and it stays as it is."""
        self._file.seek(0)
        entry = self._bucket.write(path, self._file)
        self.dirty = False
        return entry

    def close(self) -> None:
        """It takes no more room."""
        self._file.close()

    def load(self) -> None:
        """Have here what is not written anew."""
        if self._base is None:
            return
        self._check_room(self._base.size)
        for start in range(0, self._base.size, COPY_BYTES):
            end = min(start + COPY_BYTES, self._base.size)
            part = memoryview(self._bucket.read(self._path, self._base, start, end))
            while part:
                done = os.pwrite(self._file.fileno(), part, start)
                start, part = start + done, part[done:]
        self._base = None

    def _check_room(self, wanted: int) -> None:
        if shutil.disk_usage(self._spool).free - wanted < RESERVE_BYTES:
            raise OSError(errno.ENOSPC, f"{self._path}: the machine's disk has no room for what is not stored yet")
