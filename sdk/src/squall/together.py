"""Operations on dicts and queues that several threads make at once go together: what comes while others are under way
goes with the next request.

Owns who sends. An operation that comes alone is a plain request at once, as it is when this module cannot help it: each
can go alone at any time, because the server knows it by its request's id. So a request for several is made
once, and when it breaks, each goes its own way, with its own patience.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, TypeVar

from squall.blocking import Abort, Aborted, current_abort, ended_by
from squall.errors import SquallError, from_wire
from squall.http_api.protocol import FrameKind, frames
from squall.http_api.routes import Route
from squall.stored import HEADERS, answer_frames

if TYPE_CHECKING:
    from squall.client import Client
    from squall_runner.frames import Frame

R = TypeVar("R")

MAX_OPS = 256
MAX_BYTES = 4 * 1024 * 1024
SIDE_BY_SIDE = 3
"""Lone operations of one kind under way; more threads than these take turns in two halves, with one request each."""
HALVES = 2
GATHER_S = 0.001
"""A sender waits so long at most for those who have just been answered."""
LINE_S = 1.0
"""Who has waited so long for those before goes alone: they may have met a server that is away."""
TIMEOUT_S = 10.0
"""Of a request for several; the server takes a second at most for one."""


class Op(NamedTuple):
    """An operation as `Route.ENTRIES` takes it."""

    meta: dict[str, Any]
    data: bytes = b""
    changes: bool = True
    """It changes something. Those that do not go apart from them: a look takes less time than a write."""


class _Waiting:
    """An operation whose thread waits until it is its turn to send, or others have sent it."""

    __slots__ = ("batch", "found", "op", "settled", "wake")

    def __init__(self, op: Op) -> None:
        self.op = op
        self.batch: Optional[Abort] = None
        """Ends the request that it is part of."""
        self.settled = False
        self.found: Optional[Frame] = None
        self.wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    def settle(self, found: Optional[Frame]) -> None:
        """It was answered; None: it goes alone."""
        self.found, self.settled = found, True
        self.wake.put(None)


class _Group:
    """The operations of one kind that wait while others are under way."""

    __slots__ = ("ended", "gathering", "senders", "sizes", "turns", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Waiting] = deque()
        self.turns: set[_Waiting] = set()
        """Who was told to send, and has not yet begun."""
        self.senders = 0
        self.gathering: Optional[_Waiting] = None
        """The sender, as long as it waits for those who come back from the last request."""
        self.sizes: deque[int] = deque([1] * HALVES, HALVES)
        """Of the last requests: their sum is about how many threads there are."""
        self.ended = 0.0

    @property
    def idle(self) -> bool:
        return not self.senders

    @property
    def enough(self) -> int:
        """So many should go together: half, so that others come back while they are under way."""
        return sum(self.sizes) // HALVES

    @property
    def most(self) -> int:
        """So many requests may be under way."""
        return SIDE_BY_SIDE if self.enough <= 1 else 1

    def join(self, mine: _Waiting) -> bool:
        """Whether it is to be sent now, and not to wait in line."""
        if self.senders < self.most:
            self.senders += 1
            return True
        self.waiting.append(mine)
        if self.gathering is not None and len(self.waiting) + 1 >= self.enough:
            self.gathering.wake.put(None)
        return False

    def to_gather(self, mine: _Waiting) -> bool:
        """Whether others are about to come back, for whom the sender should wait a moment."""
        soon = time.monotonic() - self.ended < GATHER_S
        if soon and self.gathering is None and len(self.waiting) + 1 < self.enough:
            self.gathering = mine
            return True
        return False

    def forget(self, mine: _Waiting) -> bool:
        """It waits no more; whether it was its turn to send."""
        if mine in self.waiting:
            self.waiting.remove(mine)
        turn = mine in self.turns
        self.turns.discard(mine)
        return turn

    def take(self, taken: list[_Waiting]) -> None:
        """Add the next ones to send to the sender's own."""
        size = len(taken[0].op.data)
        while self.waiting and len(taken) < MAX_OPS and size + len(self.waiting[0].op.data) <= MAX_BYTES:
            taken.append(self.waiting.popleft())
            size += len(taken[-1].op.data)
        self.sizes.append(len(taken))

    def leave(self) -> None:
        """Somebody else sends from here on."""
        self.ended = time.monotonic()
        if not self.waiting or self.senders > self.most:
            self.senders -= 1
            return
        following = self.waiting.popleft()
        self.turns.add(following)
        following.wake.put(None)


class _Ways:
    """What is under way of one client."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.looks, self.changes = _Group(), _Group()
        self.waiters = 0
        """Requests that wait at the server."""


_lock = threading.Lock()
_ways: weakref.WeakKeyDictionary[Client, _Ways] = weakref.WeakKeyDictionary()


def _after_fork() -> None:
    global _lock, _ways  # their threads are those of the parent
    _lock, _ways = threading.Lock(), weakref.WeakKeyDictionary()


os.register_at_fork(after_in_child=_after_fork)


def _of(client: Client) -> _Ways:
    ways = _ways.get(client)
    if ways is None:
        with _lock:
            ways = _ways.setdefault(client, _Ways())
    return ways


def send(client: Client, op: Op, alone: Callable[[], R], read: Callable[[Frame], R]) -> R:
    """What came of an operation: of the request that `alone` makes, or of its answer among others."""
    ways = _of(client)
    group, mine = ways.changes if op.changes else ways.looks, _Waiting(op)
    with ways.lock:
        sends = group.join(mine)
    if not sends:
        sends = _wait(ways.lock, group, mine)
    if sends:
        some = [mine]
        try:
            _gather(ways.lock, group, mine, some)
            if len(some) == 1:
                return alone()
            answers = _asked(client, some)
        except BaseException:
            answers = [None] * len(some)
            raise
        finally:
            with ways.lock:  # before those who were sent are told: they will come back and wait
                group.leave()
            if len(some) > 1:
                for each, answer in zip(some, answers):
                    each.settle(answer)
    found = _checked(mine.found)
    return alone() if found is None else read(found)


@contextlib.contextmanager
def waiting_there(client: Client, *, only_alone: bool) -> Iterator[bool]:
    """Around a request that waits at the server. With `only_alone` it says whether there is no company: with company
    one looks first, together with the others, because a request that waits cannot go with them."""
    ways = _of(client)
    with ways.lock:
        fits = not only_alone or (ways.changes.idle and not ways.waiters)
        ways.waiters += fits
    try:
        yield fits
    finally:
        if fits:
            with ways.lock:
                ways.waiters -= 1


def _gather(lock: threading.Lock, group: _Group, mine: _Waiting, some: list[_Waiting]) -> None:
    """Fill the list of who is sent now; it is the caller's, so that nobody is forgotten whatever interrupts this."""
    with lock:
        gathers = group.to_gather(mine)
    try:
        if gathers:
            with contextlib.suppress(queue.Empty):
                mine.wake.get(timeout=GATHER_S)
    finally:
        with lock:
            if gathers:
                group.gathering = None
    with lock:
        group.take(some)
        if len(some) > 1:
            batch = Abort()
            for each in some:
                each.batch = batch


def _checked(found: Optional[Frame]) -> Optional[Frame]:
    if found is None or found.meta.get("again"):
        return None
    if "error" in found.meta:
        error = from_wire(found.meta["error"])
        if not error.retryable:
            raise error
        return None  # alone it is repeated for as long as any request is
    return found


def _wait(lock: threading.Lock, group: _Group, mine: _Waiting) -> bool:
    """Until it is its turn to send (True), or it is answered or has to go alone. Raises `Aborted`."""
    abort = current_abort()

    def stop() -> None:
        # Sent already: the request breaks, so that the server hears of it. The others of it go alone.
        if mine.batch is not None:
            mine.batch.set()
        mine.wake.put(None)

    if abort is not None:
        abort.add(stop)
    try:
        with contextlib.suppress(queue.Empty):
            mine.wake.get(timeout=LINE_S)
        if abort is not None:
            abort.check()
        with lock:
            if mine.settled or mine.batch is None:
                return group.forget(mine)
        with contextlib.suppress(queue.Empty):  # it is on its way
            mine.wake.get(timeout=TIMEOUT_S + LINE_S)
        if abort is not None:
            abort.check()
        return False
    except BaseException:
        with lock:
            if group.forget(mine):
                group.leave()
        raise
    finally:
        if abort is not None:
            abort.remove(stop)


def _asked(client: Client, some: list[_Waiting]) -> list[Optional[Frame]]:
    """The answers of one request; none if it broke."""
    nothing: list[Optional[Frame]] = [None] * len(some)
    batch = some[0].batch
    assert batch is not None
    try:
        with ended_by(batch):
            if not client.info().entries_together:
                return nothing
            body = b"".join([frames.encode(FrameKind.ENTRY, each.op.meta, each.op.data) for each in some])
            answer = client.attempt("POST", Route.ENTRIES, HEADERS, body, TIMEOUT_S)
            found = list(answer_frames(answer.body))
    except (OSError, SquallError, frames.BadFrame):
        found = []
    except Aborted:
        abort = current_abort()
        if abort is not None:
            abort.check()
        found = []
    return [*found] if len(found) == len(some) else nothing
