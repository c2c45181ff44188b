"""The kernel's side of FUSE: its requests and answers as bytes (protocol 7.31, Linux 5.4). Pure.

Only what a bucket can mean something by; for all else the kernel is told ENOSYS, which it remembers.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

MAX_WRITE_BYTES = 1 << 20
BUFFER_BYTES = MAX_WRITE_BYTES + 8192
"""The kernel wants room for a write of the largest size and its heads."""
ROOT = 1
VALID_S = 1
"""For so long the kernel does not ask again what a file is."""


class Op(IntEnum):
    """What is asked."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    RENAME2 = 45


_HEAD = struct.Struct("<IIQQIIIHH")
_ANSWER = struct.Struct("<IiQ")
_ATTR = struct.Struct("<6Q10I")
_ENTRY = struct.Struct("<4Q2I")
_ATTR_OUT = struct.Struct("<QII")
_OPEN_OUT = struct.Struct("<QII")
_INIT_IN = struct.Struct("<4I")
_INIT_OUT = struct.Struct("<4I2H2I2H2I11H")
_STATFS = struct.Struct("<5Q4I6I")
_DIRENT = struct.Struct("<QQII")
_READ = struct.Struct("<QQIIQII")
_HANDLE = struct.Struct("<Q")
_FORGET_ONE = struct.Struct("<QQ")
_SETATTR = struct.Struct("<IIQQ")
_OPEN = struct.Struct("<II")
_CREATE = struct.Struct("<4I")

ASYNC_READ, ATOMIC_O_TRUNC, BIG_WRITES, AUTO_INVAL_DATA = 1, 1 << 3, 1 << 5, 1 << 12
PARALLEL_DIROPS, MAX_PAGES = 1 << 18, 1 << 22
WANTED = ASYNC_READ | ATOMIC_O_TRUNC | BIG_WRITES | AUTO_INVAL_DATA | PARALLEL_DIROPS | MAX_PAGES
SIZE_CHANGES, BY_HANDLE = 1 << 3, 1 << 6
READ_AHEAD_BYTES = 1 << 20
AT_ONCE, CONGESTED = 64, 48


class Request(NamedTuple):
    """One question of the kernel's."""

    op: int
    unique: int
    """Its number."""
    node: int
    pid: int
    """Of the thread that asks, as this process sees it."""
    body: memoryview


class Attributes(NamedTuple):
    """What `stat` shows."""

    node: int
    is_folder: bool
    size: int
    mtime: float


def request(data: memoryview) -> Request:
    """What was read from the device."""
    _, op, unique, node, _, _, pid, _, _ = _HEAD.unpack_from(data)
    return Request(op, unique, node, pid, data[_HEAD.size :])


def answer(unique: int, body: bytes | memoryview = b"") -> list[bytes | memoryview]:
    """An answer, in parts."""
    return [_ANSWER.pack(_ANSWER.size + len(body), 0, unique), body]


def refusal(unique: int, code: int) -> list[bytes | memoryview]:
    """An error number for an answer."""
    return [_ANSWER.pack(_ANSWER.size, -code, unique)]


def init(body: memoryview) -> bytes:
    """The answer to INIT. Raises `ValueError` for a kernel that is too old."""
    major, minor, _, offered = _INIT_IN.unpack_from(body)
    if (major, minor) < (7, 31):
        raise ValueError(f"the kernel speaks FUSE {major}.{minor}; buckets need 7.31 (Linux 5.4)")
    pages = MAX_WRITE_BYTES // 4096
    head = (7, 31, READ_AHEAD_BYTES, WANTED & offered, AT_ONCE, CONGESTED, MAX_WRITE_BYTES, 1, pages, 0, 0, 0)
    return _INIT_OUT.pack(*head, *(0,) * 11)


def _attr(of: Attributes) -> bytes:
    mode = stat.S_IFDIR | 0o777 if of.is_folder else stat.S_IFREG | 0o666
    seconds = max(int(of.mtime), 0)
    nanoseconds = int((max(of.mtime, 0.0) - seconds) * 1e9)
    times = (seconds,) * 3 + (nanoseconds,) * 3
    links = 2 if of.is_folder else 1
    return _ATTR.pack(of.node, of.size, -(-of.size // 512), *times, mode, links, 0, 0, 0, 4096, 0)


def entry(of: Attributes) -> bytes:
    """The answer to LOOKUP and its like."""
    return _ENTRY.pack(of.node, 0, VALID_S, VALID_S, 0, 0) + _attr(of)


def attributes(of: Attributes) -> bytes:
    """The answer to GETATTR and SETATTR."""
    return _ATTR_OUT.pack(VALID_S, 0, 0) + _attr(of)


def opened(handle: int) -> bytes:
    """The answer to OPEN and OPENDIR."""
    return _OPEN_OUT.pack(handle, 0, 0)


def written(size: int) -> bytes:
    """The answer to WRITE."""
    return struct.pack("<II", size, 0)


def file_system(free_bytes: int) -> bytes:
    """The answer to STATFS: a bucket has no end; what may be written at once has one."""
    blocks = free_bytes // 4096
    return _STATFS.pack(1 << 40, blocks, blocks, 1 << 40, 1 << 40, 4096, 255, 4096, 0, *(0,) * 6)


def folder(entries: Sequence[tuple[int, str, bool]], first: int, most: int) -> bytes:
    """The answer to READDIR: (node, name, whether a folder) from the one with number `first`, as many as fit."""
    parts: list[bytes] = []
    size = 0
    for number in range(first, len(entries)):
        node, name, is_folder = entries[number]
        raw = name.encode("utf-8", "surrogateescape")
        kind = (stat.S_IFDIR if is_folder else stat.S_IFREG) >> 12
        part = _DIRENT.pack(node, number + 1, len(raw), kind) + raw
        part += b"\0" * (-len(part) % 8)
        if size + len(part) > most:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def name(body: memoryview, after: int = 0) -> str:
    """A name that ends the body."""
    return bytes(body[after:]).rstrip(b"\0").decode("utf-8", "surrogateescape")


def two_names(body: memoryview, after: int) -> tuple[str, str]:
    """Two names that end it."""
    first, second = bytes(body[after:]).split(b"\0")[:2]
    return first.decode("utf-8", "surrogateescape"), second.decode("utf-8", "surrogateescape")


def handle(body: memoryview) -> int:
    """Of RELEASE, FLUSH and FSYNC."""
    return int(_HANDLE.unpack_from(body)[0])


def extent(body: memoryview) -> tuple[int, int, int]:
    """Of READ, READDIR and WRITE: handle, offset, size."""
    found, offset, size, *_ = _READ.unpack_from(body)
    return found, offset, size


def payload(body: memoryview, size: int) -> memoryview:
    """Of WRITE."""
    return body[_READ.size : _READ.size + size]


def open_flags(body: memoryview) -> int:
    """Of OPEN and CREATE."""
    return int(_OPEN.unpack_from(body)[0])


def created_name(body: memoryview) -> str:
    """Of CREATE."""
    return name(body, _CREATE.size)


def made_name(body: memoryview) -> str:
    """Of MKDIR."""
    return name(body, 8)


def new_size(body: memoryview) -> int | None:
    """Of SETATTR: the size that is set, if one is."""
    valid, _, _, size = _SETATTR.unpack_from(body)
    return size if valid & SIZE_CHANGES else None


def forgotten(op: int, node: int, body: memoryview) -> list[tuple[int, int]]:
    """Nodes, and how many times each is forgotten."""
    if op == Op.FORGET:
        return [(node, _HANDLE.unpack_from(body)[0])]
    count = struct.unpack_from("<I", body)[0]
    return [_FORGET_ONE.unpack_from(body, 8 + place * _FORGET_ONE.size) for place in range(count)]


def moved_to(body: memoryview, with_flags: bool) -> tuple[int, int, str, str]:
    """Of RENAME and RENAME2: the new folder, flags, the old name and the new one."""
    target, flags = struct.unpack_from("<QI", body) if with_flags else (_HANDLE.unpack_from(body)[0], 0)
    return (target, flags, *two_names(body, 16 if with_flags else 8))


def interrupted(body: memoryview) -> int:
    """Of INTERRUPT: the number of the request."""
    return handle(body)
