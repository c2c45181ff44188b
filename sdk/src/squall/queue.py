"""Queue: items in, items out, in order, between any programs and containers of an environment."""

from __future__ import annotations

import queue
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Optional

from squall.blocking import blocking, blocking_iterator, immediate, sleep
from squall.errors import InvalidError, SquallError
from squall.objects import Ephemeral, Handle, Objects, place, session_and_environment
from squall.origin import refuse_client

if TYPE_CHECKING:
    from squall.client import Client
    from squall_runner.frames import Frame

MAX_ITEM_BYTES = 1 << 20
MAX_AT_ONCE = 500
WAIT_S = 25.0
"""One request waits so long at most, then the next one does."""
DAY_S = 86400
_Item = tuple[dict[str, Any], bytes]
"""What the frame of an item has."""


class Queue(Handle):
    """Items of any kind that can be pickled, first in first out. Partitions are queues of their own under one name.

    A partition holds 5,000 items of 1 MiB; they go away 24 hours after they were put, unless `partition_ttl` says
    otherwise. Taking an item removes it: one whose taker dies before it has the answer is lost."""

    KIND, WHAT = "QUEUE", "queue"
    objects: Objects

    @immediate
    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        environment_name: Optional[str] = None,
        create_if_missing: bool = False,
        client: None = None,
    ) -> Queue:
        """A queue of the server. Nothing is asked before it is used."""
        refuse_client(client)
        return cls(place(name, environment_name, "queue"), create_if_missing)

    @immediate
    @classmethod
    def from_id(cls, queue_id: str, client: None = None) -> Queue:
        """A queue by its id."""
        refuse_client(client)
        return cls(queue_id)

    @classmethod
    def ephemeral(cls, client: None = None, environment_name: Optional[str] = None) -> Ephemeral:
        """A queue without a name for the time of a `with` (or `async with`) block."""
        refuse_client(client)
        return Ephemeral(cls, environment_name)

    # --- in ---

    @blocking
    def put(
        self,
        v: Any,
        block: bool = True,
        timeout: Optional[float] = None,
        *,
        partition: Optional[str] = None,
        partition_ttl: int = DAY_S,
    ) -> None:
        """Put an item at the end. Waits while the partition is full; `queue.Full` after `timeout` seconds, or at once
        with `block=False`."""
        self._put([v], block, timeout, partition, partition_ttl)

    @blocking
    def put_many(
        self,
        vs: Sequence[Any],
        block: bool = True,
        timeout: Optional[float] = None,
        *,
        partition: Optional[str] = None,
        partition_ttl: int = DAY_S,
    ) -> None:
        """Put items at the end, in their order. `queue.Full` may come after some of them were put."""
        self._put(list(vs), block, timeout, partition, partition_ttl)

    def _put(
        self, values: list[Any], block: bool, timeout: Optional[float], partition: Optional[str], ttl: int
    ) -> None:
        from squall import together
        from squall.stored import encoded

        client, waiting = _client(), _Waiting(block, timeout)
        items = [encoded(client, value, "the item", MAX_ITEM_BYTES) for value in values]
        with together.waiting_there(client, only_alone=len(items) == 1) as fits:
            if fits:
                self._put_all(client, items, waiting, partition, ttl)
                return
        if self._put_at_once(client, items[0], partition, ttl):
            return
        if waiting.over():
            raise queue.Full
        with together.waiting_there(client, only_alone=False):
            self._put_all(client, items, waiting, partition, ttl)

    def _put_all(
        self, client: Client, items: list[_Item], waiting: _Waiting, partition: Optional[str], ttl: int
    ) -> None:
        bodies = [_frame(*item) for item in items]
        while bodies:
            stored = self._put_some(client, bodies[:MAX_AT_ONCE], partition, ttl, waiting.next_s(), _new_request())
            bodies = bodies[stored:]
            if bodies and not stored and waiting.over():
                raise queue.Full

    def _put_at_once(self, client: Client, item: _Item, partition: Optional[str], ttl: int) -> int:
        """Together with what others put and take, without waiting for room; whether there was any."""
        from squall import together

        request, (meta, data) = _new_request(), item
        asked = {"op": "enqueue", "object": self._looked_up(), "ttl": ttl, "request": request, **meta}
        if partition is not None:
            asked["partition"] = _checked(partition)

        def alone() -> int:
            return self._put_some(client, [_frame(meta, data)], partition, ttl, 0.0, request)

        return together.send(client, together.Op(asked, data), alone, lambda frame: int(frame.meta["stored"]))

    def _put_some(
        self, client: Client, bodies: list[bytes], partition: Optional[str], ttl: int, wait_s: float, request: str
    ) -> int:
        from squall.stored import HEADERS

        path = self._path("QUEUE_ITEMS", partition, ttl=ttl, wait=wait_s, request=request)
        return int(_json(client.request("POST", path, HEADERS, b"".join(bodies)).body)["stored"])

    # --- out ---

    @blocking
    def get(self, block: bool = True, timeout: Optional[float] = None, *, partition: Optional[str] = None) -> Any:
        """Take the first item. Waits for one; `queue.Empty` after `timeout` seconds. With `block=False` None at once if
        there is none."""
        taken = self._take(1, block, timeout, partition)
        return taken[0] if taken else None

    @blocking
    def get_many(
        self, n_values: int, block: bool = True, timeout: Optional[float] = None, *, partition: Optional[str] = None
    ) -> list[Any]:
        """Take up to `n_values` of the first items. Waits for one at least; `queue.Empty` after `timeout` seconds. With
        `block=False` an empty list at once if there is none."""
        if n_values < 1:
            raise InvalidError(f"get_many takes 1 item or more, got {n_values!r}")
        return self._take(n_values, block, timeout, partition)

    def _take(self, most: int, block: bool, timeout: Optional[float], partition: Optional[str]) -> list[Any]:
        from squall import together

        client, waiting = _client(), _Waiting(block, timeout)
        with together.waiting_there(client, only_alone=most == 1) as fits:
            if fits:
                return self._take_all(client, most, block, waiting, partition)
        taken = self._take_at_once(client, partition)
        if not taken and not waiting.over():
            with together.waiting_there(client, only_alone=False):
                return self._take_all(client, most, block, waiting, partition)
        if not taken and block:
            raise queue.Empty
        return taken

    def _take_at_once(self, client: Client, partition: Optional[str]) -> list[Any]:
        """The first item, together with what others put and take, without waiting for one."""
        from squall import together
        from squall.stored import decoded

        request = _new_request()
        asked = {"op": "take", "object": self._looked_up(), "request": request}
        if partition is not None:
            asked["partition"] = _checked(partition)

        def alone() -> list[Frame]:
            return self._take_some(client, 1, partition, 0.0, request)

        def read(frame: Frame) -> list[Frame]:
            return [frame] if frame.meta["taken"] else []

        found = together.send(client, together.Op(asked), alone, read)
        return [decoded(client, frame.meta, frame.payload) for frame in found]

    def _take_some(
        self, client: Client, most: int, partition: Optional[str], wait_s: float, request: str
    ) -> list[Frame]:
        from squall.stored import answer_frames

        path = self._path("QUEUE_TAKEN", partition, most=most, wait=wait_s, request=request)
        return list(answer_frames(client.request("POST", path).body))

    def _take_all(
        self, client: Client, most: int, block: bool, waiting: _Waiting, partition: Optional[str]
    ) -> list[Any]:
        from squall.stored import decoded

        taken = list[Any]()
        while True:
            wait_s, number = 0.0 if taken else waiting.next_s(), min(most - len(taken), MAX_AT_ONCE)
            try:
                frames = self._take_some(client, number, partition, wait_s, _new_request())
            except SquallError:
                if taken:  # nobody else will get these
                    return taken
                raise
            found = [decoded(client, frame.meta, frame.payload) for frame in frames]
            taken += found
            if len(taken) == most or (taken and not found) or (taken and len(found) < MAX_AT_ONCE):
                return taken
            if not taken and waiting.over():
                if block:
                    raise queue.Empty
                return []

    # --- looking ---

    @blocking
    def len(self, *, partition: Optional[str] = None, total: bool = False) -> int:
        """How many items a partition has; with `total` all partitions together."""
        from squall import together

        client, path = _client(), self._counted(partition, total)
        asked = {"op": "length", "object": self._looked_up(), "partition": partition, "total": total}

        def alone() -> int:
            return int(_json(client.request("GET", path).body)["count"])

        op = together.Op(asked, changes=False)
        return together.send(client, op, alone, lambda frame: int(frame.meta["count"]))

    @blocking
    def clear(self, *, partition: Optional[str] = None, all: bool = False) -> None:
        """Remove the items of a partition, or of all."""
        _client().request("DELETE", self._counted(partition, all))

    def _counted(self, partition: Optional[str], total: bool) -> str:
        if total and partition is not None:
            raise InvalidError("give a partition, or all of them, not both")
        return self._path("QUEUE_COUNT", partition, total=int(total))

    @blocking_iterator
    def iterate(self, *, partition: Optional[str] = None, item_poll_timeout: float = 0.0) -> Iterator[Any]:
        """The items, without taking them; ends when there was no further one for `item_poll_timeout` seconds."""
        from squall.stored import answer_frames, decoded

        client, after, until = _client(), 0, time.monotonic() + item_poll_timeout
        while True:
            path = self._path("QUEUE_ITEMS", partition, after=after)
            *found, last = answer_frames(client.request("GET", path).body)
            for frame in found:
                yield decoded(client, frame.meta, frame.payload)
            after = last.meta["at"]
            if found:
                until = time.monotonic() + item_poll_timeout
            if not last.meta["next"]:
                if time.monotonic() >= until:
                    return
                sleep(min(0.2, item_poll_timeout))

    def __len__(self) -> int:
        return self.len()

    def __bool__(self) -> bool:
        return True

    def _path(self, route: str, partition: Optional[str], **asked: Any) -> str:
        from squall.client import query
        from squall.http_api.routes import Route

        if partition is not None:
            _checked(partition)
        path: str = getattr(Route, route)
        return query(path.format(object=self._looked_up()), partition=partition, **asked)


Queue.objects = Objects(lambda: Queue, "queue", "QUEUES", "QUEUE")


class _Waiting:
    """How long is left of a caller's patience."""

    def __init__(self, block: bool, timeout: Optional[float]) -> None:
        if timeout is not None and timeout < 0:
            raise InvalidError(f"timeout must be 0 or more seconds, got {timeout!r}")
        self._until = time.monotonic() + (timeout if timeout is not None else float("inf")) if block else 0.0

    def next_s(self) -> float:
        """What the next request may wait."""
        return round(min(WAIT_S, max(0.0, self._until - time.monotonic())), 3)

    def over(self) -> bool:
        """Whether there is nothing left."""
        return time.monotonic() >= self._until


def _checked(partition: Any) -> str:
    if not 1 <= len(str(partition).encode()) <= 64:
        raise InvalidError(f"a partition is text of 1 to 64 bytes, got {partition!r:.100}")
    return str(partition)


def _new_request() -> str:
    """By which the server knows a request that is repeated."""
    return secrets.token_hex(8)


def _frame(meta: dict[str, Any], data: bytes) -> bytes:
    from squall.http_api.protocol import FrameKind, frames

    return frames.encode(FrameKind.ENTRY, meta, data)


def _client() -> Client:
    return session_and_environment(None)[0].client


def _json(body: bytes) -> Any:
    import json

    return json.loads(body)
