"""Spawned calls of several threads leave together: what comes while a request is under way goes with the next one.

Owns who sends: for each target one of the threads that wait, on behalf of all of them. A call alone is a plain request,
so a single thread waits for nobody; sixteen calls in one request cost caller and gateway about as much as three alone.
"""

from __future__ import annotations

import os
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional

from squall.blocking import current_abort
from squall.client import query
from squall.errors import SquallError
from squall.http_api.protocol import FRAMES_CONTENT_TYPE, FrameKind, Header, frames
from squall.http_api.routes import Route
from squall.ids import call_id_on
from squall.spec import CHUNK_INPUTS

if TYPE_CHECKING:
    from squall.client import Client

MAX_BYTES = 4 * 1024 * 1024
SHARD_NS = 100_000_000
"""How long calls go to one shard: long against a write, short against what fills a queue."""
_first_shard = secrets.randbelow(1 << 16)  # another one in each program, or all would be at the same one at any time
OWN_HEADERS = frozenset((Header.CALL, Header.TRACEPARENT, Header.SENT))
"""What a call says about itself; the rest is about its target."""


class _Spawned:
    """One call whose thread waits until it is accepted."""

    __slots__ = ("body", "done", "error", "headers", "wake")

    def __init__(self, headers: Mapping[str, str], body: bytes) -> None:
        self.headers, self.body = headers, body
        self.done = False
        self.error: Optional[SquallError] = None
        self.wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    def settle(self, error: Optional[SquallError]) -> None:
        """It was answered."""
        self.error, self.done = error, True
        self.wake.put(None)


class _Group:
    """The calls of one target that wait while one of their threads sends."""

    __slots__ = ("sender", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Spawned] = deque()
        self.sender: Optional[_Spawned] = None

    def take(self) -> list[_Spawned]:
        """The next ones to send; the sender is the first of them."""
        taken = [self.waiting.popleft()]
        size = len(taken[0].body)
        while self.waiting and len(taken) < CHUNK_INPUTS and size + len(self.waiting[0].body) <= MAX_BYTES:
            taken.append(self.waiting.popleft())
            size += len(taken[-1].body)
        return taken


_lock = threading.Lock()
_groups: dict[tuple[Any, ...], _Group] = {}
"""While somebody sends."""


def _after_fork() -> None:
    global _lock, _groups  # their threads are those of the parent
    _lock, _groups = threading.Lock(), {}


os.register_at_fork(after_in_child=_after_fork)


def new_call_id(shards: int) -> str:
    """A new call id. Calls made at about the same time lie on one shard, so that those sent together are one write."""
    return call_id_on(shard_at(time.monotonic_ns(), shards))


def shard_at(now_ns: int, shards: int) -> int:
    """Where calls of this moment lie: on every shard for as long as on any other."""
    return (_first_shard + now_ns // SHARD_NS) % shards


def send(client: Client, headers: Mapping[str, str], body: bytes) -> None:
    """Have one spawned call accepted. Raises the error of the answer."""
    key = (client, *[pair for pair in headers.items() if pair[0] not in OWN_HEADERS])
    mine = _Spawned(headers, body)
    sent: list[_Spawned] = []
    error: Optional[SquallError] = None
    group = _join(key, mine)
    try:
        while not mine.done and group.sender is not mine:
            _wait(mine)
        if not mine.done:
            sent, error = _send_next(client, group)
    finally:
        _leave(key, group, mine)
    for each in sent:
        each.settle(error)
    if mine.error is not None:
        raise mine.error


def _join(key: tuple[Any, ...], mine: _Spawned) -> _Group:
    with _lock:
        group = _groups.get(key)
        if group is None:
            group = _groups[key] = _Group()
            group.sender = mine
        group.waiting.append(mine)
        return group


def _leave(key: tuple[Any, ...], group: _Group, mine: _Spawned) -> None:
    """Somebody else sends from here on. Before those who were sent are told: they will come back and wait."""
    with _lock:
        if mine in group.waiting:
            group.waiting.remove(mine)
        if group.sender is not mine:
            return
        group.sender = group.waiting[0] if group.waiting else None
        if group.sender is None:
            _groups.pop(key, None)
        else:
            group.sender.wake.put(None)


def _wait(mine: _Spawned) -> None:
    abort = current_abort()
    if abort is None:
        mine.wake.get()
        return

    def wake() -> None:
        mine.wake.put(None)

    abort.add(wake)
    try:
        mine.wake.get()
    finally:
        abort.remove(wake)
    abort.check()


def _send_next(client: Client, group: _Group) -> tuple[list[_Spawned], Optional[SquallError]]:
    """Who was sent, and what is wrong with all of them."""
    with _lock:
        some = group.take()
    try:
        _request(client, some)
    except SquallError as error:
        return some, error
    except BaseException:
        # Only this thread was interrupted: the others are sent again, with their ids, by one of them.
        with _lock:
            group.waiting.extendleft(reversed(some[1:]))
        raise
    return some, None


def _request(client: Client, some: Sequence[_Spawned]) -> None:
    first = some[0]
    if len(some) == 1:
        client.request("POST", query(Route.CALLS, wait=0), first.headers, first.body)
        return
    common = {name: value for name, value in first.headers.items() if name not in OWN_HEADERS}
    common["Content-Type"] = FRAMES_CONTENT_TYPE
    own = [[each.headers.get(name, "") for name in (Header.CALL, Header.TRACEPARENT, Header.SENT)] for each in some]
    meta = {"calls": own, "sizes": [len(each.body) for each in some]}
    body = frames.encode(FrameKind.SPAWNED, meta, b"".join([each.body for each in some]))
    client.request("POST", Route.SPAWNS, common, body)
