"""Answers the kernel: what system calls on a mounted bucket mean.

Files are read lazily, in parts. What is written is kept on this machine until the file is closed, or `fsync` is
called: then it becomes the object, in whole, before that call returns. A writer that is killed leaves the object as
it was. There are no modes, owners and times to set; a file's time is the object's.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from squall_gpu_agent.buckets import wire
from squall_gpu_agent.buckets.contents import Reader, Readers, Written
from squall_gpu_agent.buckets.store import Bucket
from squall_gpu_agent.buckets.tree import Node, Tree, join
from squall_gpu_agent.buckets.wire import Attributes, Op, Request
from squall_gpu_agent.buckets.writers import Writer, is_being_killed, process_of

WORKERS = 24
"""Requests that are being answered at once."""
AHEAD = 8
"""Parts of objects on their way."""
_NAMELESS = (Op.FORGET, Op.BATCH_FORGET)


class Handle:
    """A file that somebody has open."""

    def __init__(self, node: Node, writer: Writer | None) -> None:
        self.node = node
        self.writer = writer
        self.reader: Reader | None = None
        self.reported = False
        """Its writer was told that it could not be stored."""


class Listed(NamedTuple):
    """A folder that somebody reads, as it was when it was opened."""

    entries: list[tuple[int, str, bool]]


class Server:
    """One mount."""

    def __init__(self, device: int, bucket: Bucket, spool: Path, say: Callable[[str], None]) -> None:
        self._device = device
        self._bucket, self._spool, self._say = bucket, spool, say
        self._tree = Tree(bucket)
        self._handles: dict[int, Handle | Listed] = {}
        self._next = 1
        self._lock = threading.Lock()
        self._pending: dict[int, Request] = {}
        self._readers = Readers()
        self._ahead = ThreadPoolExecutor(AHEAD, "ahead")
        self._does: dict[int, Callable[[Request], bytes]] = {
            Op.INIT: lambda request: wire.init(request.body),
            Op.LOOKUP: self._lookup,
            Op.GETATTR: self._getattr,
            Op.SETATTR: self._setattr,
            Op.MKDIR: self._mkdir,
            Op.UNLINK: self._unlink,
            Op.RMDIR: self._rmdir,
            Op.RENAME: self._rename,
            Op.RENAME2: self._rename,
            Op.OPEN: self._open,
            Op.CREATE: self._create,
            Op.READ: self._read,
            Op.WRITE: self._write,
            Op.FLUSH: self._flush,
            Op.FSYNC: self._fsync,
            Op.RELEASE: self._release,
            Op.OPENDIR: self._opendir,
            Op.READDIR: self._readdir,
            Op.RELEASEDIR: self._releasedir,
            Op.FSYNCDIR: lambda _: b"",
            Op.STATFS: self._statfs,
            Op.DESTROY: lambda _: b"",
        }

    def run(self) -> None:
        """Until it is unmounted, and what is still to be stored is."""
        workers = [threading.Thread(target=self._work, name=f"worker-{n}", daemon=True) for n in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        while self._handles:  # of an unmount by force
            _, handle = self._handles.popitem()
            if isinstance(handle, Handle):
                self._let_go(handle)

    def _work(self) -> None:
        buffer = bytearray(wire.BUFFER_BYTES)
        view = memoryview(buffer)
        while True:
            try:
                size = os.readv(self._device, [buffer])
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return  # ENODEV: it is mounted nowhere any more
            self._serve(wire.request(view[:size]))

    def _serve(self, request: Request) -> None:
        if request.op in _NAMELESS:
            for number, times in wire.forgotten(request.op, request.node, request.body):
                self._tree.forget(number, times)
            return
        if request.op == Op.INTERRUPT:
            self._interrupt(wire.interrupted(request.body))
            return
        does = self._does.get(request.op)
        if does is None:
            self._send(wire.refusal(request.unique, errno.ENOSYS))
            return
        with self._lock:
            self._pending[request.unique] = request
        try:
            parts = wire.answer(request.unique, does(request))
        except OSError as error:
            parts = wire.refusal(request.unique, error.errno or errno.EIO)
        except Exception as error:  # noqa: BLE001 — whoever waits must get an answer
            self._say(f"a request could not be answered: {error!r}")
            parts = wire.refusal(request.unique, errno.EIO)
        with self._lock:
            waits = self._pending.pop(request.unique, None) is not None
        if waits:
            self._send(parts)

    def _interrupt(self, unique: int) -> None:
        """Somebody who waits got a signal. Only who is to die stops waiting: a part of a write cannot be taken back."""
        with self._lock:
            request = self._pending.get(unique)
            if request is None or not is_being_killed(request.pid):
                return
            del self._pending[unique]
        self._send(wire.refusal(unique, errno.EINTR))

    def _send(self, parts: list[bytes | memoryview]) -> None:
        try:
            os.writev(self._device, parts)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # nobody waits any more
                self._say(f"the kernel refused an answer: {error}")

    # --- names ---

    def _lookup(self, request: Request) -> bytes:
        return wire.entry(_shown(self._tree.find(self._tree.node(request.node), wire.name(request.body))))

    def _getattr(self, request: Request) -> bytes:
        node = self._tree.node(request.node)
        self._tree.look_again(node)
        return wire.attributes(_shown(node))

    def _setattr(self, request: Request) -> bytes:
        node, size = self._tree.node(request.node), wire.new_size(request.body)
        if size is None:
            return wire.attributes(_shown(node))  # modes, owners and times are not kept
        with node.lock:
            fresh = node.written is None
            written = self._written(node)
            written.resize(size)
            if fresh and not self._is_written_to(node):  # truncate(2): nobody closes it
                try:
                    self._store(node)
                finally:
                    self._end_writing(node)
        return wire.attributes(_shown(node))

    def _mkdir(self, request: Request) -> bytes:
        folder = self._tree.node(request.node)
        return wire.entry(_shown(self._tree.make_folder(folder, _fit(wire.made_name(request.body)))))

    def _rmdir(self, request: Request) -> bytes:
        self._tree.remove_folder(self._tree.node(request.node), wire.name(request.body))
        return b""

    def _unlink(self, request: Request) -> bytes:
        folder, name = self._tree.node(request.node), wire.name(request.body)
        node = self._tree.find(folder, name)
        try:
            with node.lock:
                self._bucket.remove(node.path)
                self._tree.take_name(node.path)
        finally:
            self._tree.forget(node.number, 1)
        return b""

    def _rename(self, request: Request) -> bytes:
        target, flags, old, new = wire.moved_to(request.body, request.op == Op.RENAME2)
        if flags:
            raise OSError(errno.EINVAL, "no such way to rename")
        node = self._tree.find(self._tree.node(request.node), old)
        try:
            if node.is_folder:
                raise OSError(errno.EXDEV, "folders cannot be renamed: they are only parts of names")
            self._move(node, join(self._tree.node(target).path, _fit(new)))
        finally:
            self._tree.forget(node.number, 1)
        return b""

    def _move(self, node: Node, path: str) -> None:
        """The copy first: a crash in between leaves both."""
        with node.lock:
            before = node.path
            if path == before:
                return
            if node.written is None:
                self._bucket.copy(before, path)
            else:
                node.written.load()
                self._store_as(node, path)
            self._tree.move(node, path)
            self._bucket.remove(before)
            node.looked_at = 0.0

    # --- content ---

    def _open(self, request: Request) -> bytes:
        node, flags = self._tree.node(request.node), wire.open_flags(request.body)
        if node.is_gone:
            raise OSError(errno.ESTALE, node.path)  # the kernel looks the name up again
        self._tree.look_again(node)
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        with node.lock:
            if writes:
                written = self._written(node)
                if flags & os.O_TRUNC:
                    written.resize(0)
            return wire.opened(self._add(Handle(node, Writer(request.pid) if writes else None)))

    def _create(self, request: Request) -> bytes:
        folder = self._tree.node(request.node)
        node = self._tree.create(folder, _fit(wire.created_name(request.body)))
        with node.lock:
            node.entry = None
            if node.written is None:
                node.written = Written(self._bucket, self._spool, node.path, None)
            handle = self._add(Handle(node, Writer(request.pid)))
        return wire.entry(_shown(node)) + wire.opened(handle)

    def _read(self, request: Request) -> bytes:
        number, offset, size = wire.extent(request.body)
        handle = self._handle(number)
        node = handle.node
        with node.lock:
            if node.written is not None:
                return node.written.read(offset, size)
            if handle.reader is None:
                if node.entry is None:
                    raise OSError(errno.ESTALE, node.path)
                handle.reader = Reader(self._bucket, node.path, node.entry, self._ahead, self._readers)
            reader = handle.reader
        return reader.read(offset, size)

    def _write(self, request: Request) -> bytes:
        number, offset, size = wire.extent(request.body)
        handle = self._handle(number)
        with handle.node.lock:
            handle.reported = False
            return wire.written(self._written(handle.node).write(offset, wire.payload(request.body, size)))

    def _flush(self, request: Request) -> bytes:
        """A descriptor is closed: a copy's of it, too, in a process that was forked, which says nothing."""
        handle = self._handle(wire.handle(request.body))
        writer = handle.writer
        if writer is not None and writer.process == process_of(request.pid) and not writer.was_killed():
            writer.has_closed = True
            self._report(handle)
        return b""

    def _fsync(self, request: Request) -> bytes:
        handle = self._handle(wire.handle(request.body))
        if handle.writer is not None:
            self._report(handle)
        return b""

    def _report(self, handle: Handle) -> None:
        try:
            with handle.node.lock:
                self._store(handle.node)
        except OSError:
            handle.reported = True
            raise

    def _release(self, request: Request) -> bytes:
        with self._lock:
            handle = self._handles.pop(wire.handle(request.body), None)
        if isinstance(handle, Handle):
            self._let_go(handle)
        return b""

    def _let_go(self, handle: Handle) -> None:
        """Nobody has it open any more: what no `close` has stored is stored now, unless its writer was killed."""
        node = handle.node
        if handle.reader is not None:
            handle.reader.close()
        if handle.writer is not None:
            with node.lock:
                self._store_late(handle, handle.writer)
                if not self._is_written_to(node):
                    self._end_writing(node)
            handle.writer.close()
        self._tree.released(node)

    def _store_late(self, handle: Handle, writer: Writer) -> None:
        node = handle.node
        if node.written is None or not node.written.dirty or node.is_gone or handle.reported:
            return
        if writer.was_killed():
            if not self._is_written_to(node):
                self._say(f"{node.path} was not stored: whoever wrote it was killed")
            return
        try:
            self._store(node)
        except OSError as error:
            self._say(f"{node.path} was LOST: who wrote it did not close it, and it cannot be stored: {error.strerror}")

    def _store(self, node: Node) -> None:
        if node.written is not None and node.written.dirty and not node.is_gone:
            self._store_as(node, node.path)

    def _store_as(self, node: Node, path: str) -> None:
        assert node.written is not None
        node.entry = node.written.store(path)
        self._tree.changed(os.path.dirname(path))

    def _written(self, node: Node) -> Written:
        if node.written is None:
            node.written = Written(self._bucket, self._spool, node.path, node.entry)
        return node.written

    def _end_writing(self, node: Node) -> None:
        if node.written is not None:
            node.written.close()
            node.written = None
            node.looked_at = 0.0
            if node.entry is None and not node.is_gone:
                self._tree.take_name(node.path)

    def _is_written_to(self, node: Node) -> bool:
        with self._lock:
            handles = list(self._handles.values())
        return any(isinstance(each, Handle) and each.node is node and each.writer is not None for each in handles)

    # --- folders ---

    def _opendir(self, request: Request) -> bytes:
        node = self._tree.node(request.node)
        entries = [(node.number, ".", True), (wire.ROOT, "..", True), *self._tree.entries(node.path)]
        return wire.opened(self._add(Listed(entries)))

    def _readdir(self, request: Request) -> bytes:
        number, first, most = wire.extent(request.body)
        listed = self._handles.get(number)
        if not isinstance(listed, Listed):
            raise OSError(errno.EBADF, "no such folder is open")
        return wire.folder(listed.entries, first, most)

    def _releasedir(self, request: Request) -> bytes:
        with self._lock:
            self._handles.pop(wire.handle(request.body), None)
        return b""

    def _statfs(self, _: Request) -> bytes:
        return wire.file_system(shutil.disk_usage(self._spool).free)

    def _add(self, handle: Handle | Listed) -> int:
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._handles[number] = handle
        if isinstance(handle, Handle):
            handle.node.handles += 1
        return number

    def _handle(self, number: int) -> Handle:
        found = self._handles.get(number)
        if not isinstance(found, Handle):
            raise OSError(errno.EBADF, "no such file is open")
        return found


def _shown(node: Node) -> Attributes:
    if node.is_folder:
        return Attributes(node.number, True, 0, node.entry.mtime if node.entry else 0.0)
    if node.written is not None:
        return Attributes(node.number, False, node.written.size, node.written.mtime())
    if node.entry is None:
        return Attributes(node.number, False, 0, 0.0)
    return Attributes(node.number, False, node.entry.size, node.entry.mtime)


def _fit(name: str) -> str:
    """Names that objects can have and be found by again. Raises `OSError`."""
    if len(name.encode("utf-8", "surrogateescape")) > 255:
        raise OSError(errno.ENAMETOOLONG, name)
    if not name.isprintable() or "\\" in name or any("\ud800" <= each <= "\udfff" for each in name):
        raise OSError(errno.EINVAL, name)
    return name
