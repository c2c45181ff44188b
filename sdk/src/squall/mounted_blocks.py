"""Files of a mounted volume as stored blocks: what a commit stores of a file, and how a reload fetches one.

All of it runs with the rights of the user's code, in its container.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import stat
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from squall import upper
from squall.blocking import gather
from squall.upper import Stamp

if TYPE_CHECKING:
    from squall.client import Client

BLOCKS_AT_ONCE = 4
"""Of up to 8 MiB each, in the memory of the container."""
TICK_S = 0.012
"""Two changes within one tick of the kernel's clock (10 ms at most) leave the same times on a file."""


File = dict[str, Any]
"""Fields of `squall.http_api.storage.VolumeFile`."""


class Told(NamedTuple):
    """What a commit of a file needs to know."""

    file: File
    stamp: Stamp


def client() -> Client:
    from squall import session

    return session.current().client


def read(folder: str, path: str) -> tuple[Told, bool]:
    """Store what is in a file; and whether it stayed the same meanwhile. Raises `OSError` when it is gone."""
    from squall.http_api.storage import MAX_MTIME_S

    with open(os.path.join(folder, path), "rb", opener=_no_link) as content:
        before = _settled(content.fileno())
        if not stat.S_ISREG(os.fstat(content.fileno()).st_mode):
            raise FileNotFoundError(errno.ENOENT, "a file until now", path)
        blocks, size = _stored(content, before.size)
        same = upper.stamp(os.fstat(content.fileno())) == before
    mtime = min(max(before.mtime_ns / 1e9, -MAX_MTIME_S), MAX_MTIME_S)
    file = {"path": path, "size": size, "mtime": mtime, "mode": before.mode & 0o777}
    return Told({**file, "blocks": blocks, "link": ""}, before), same


def _stored(content: Any, most: int) -> tuple[list[str], int]:
    """No more of it than it had at first: others may append to it faster than it is stored."""
    from squall.http_api.storage import BLOCK_BYTES

    blocks, size, to = list[str](), 0, client()
    while True:
        asked = [min(BLOCK_BYTES, most - size - n * BLOCK_BYTES) for n in range(BLOCKS_AT_ONCE)]
        pieces = [piece for piece in (content.read(count) for count in asked if count > 0) if piece]
        blocks += gather([functools.partial(store, to, piece) for piece in pieces], BLOCKS_AT_ONCE)
        size += sum(map(len, pieces))
        if len(pieces) < BLOCKS_AT_ONCE or len(pieces[-1]) < BLOCK_BYTES:
            return blocks, size


def link(path: str, target: str) -> File:
    return {"path": path, "size": 0, "mtime": time.time(), "mode": 0o777, "blocks": [], "link": target}


def content_of(file: Optional[File]) -> Any:
    return None if file is None else (file["link"], file["size"], file["mode"], list(file["blocks"]))


def all_of(file: Optional[File]) -> Any:
    return None if file is None else (content_of(file), file["mtime"])


def store(client: Client, piece: bytes) -> str:
    from squall.http_api.routes import Route

    sha256 = hashlib.sha256(piece).hexdigest()
    client.upload(sha256, piece, Route.VOLUME_BLOCK)
    return sha256


def _settled(descriptor: int) -> Stamp:
    """Of a file that was not changed just now: any change from here on shows in its times."""
    stamp = upper.stamp(os.fstat(descriptor))
    if abs(time.time() - stamp.ctime_ns / 1e9) >= TICK_S:
        return stamp
    time.sleep(TICK_S)
    return upper.stamp(os.fstat(descriptor))


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def fetch(file: File, place: str) -> None:
    from squall.http_api.routes import Route

    if file["link"]:
        os.symlink(file["link"], place)
        return
    source = client()
    with open(place, "xb") as target:
        for block in file["blocks"]:
            begin = target.tell()

            def restart(begin: int = begin) -> None:
                target.seek(begin)
                target.truncate()

            source.download(block, target.write, restart, Route.VOLUME_BLOCK)
    os.chmod(place, file["mode"] & 0o777)
    os.utime(place, (file["mtime"], file["mtime"]))
