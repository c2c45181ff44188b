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

MAX_ITEM_BYTES = 1 << 20
MAX_AT_ONCE = 500
WAIT_S = 25.0
"""One request waits so long at most, then the next one does."""
DAY_S = 86400


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
        from squall.http_api.protocol import FrameKind, frames
        from squall.stored import HEADERS, encoded

        client, waiting = _client(), _Waiting(block, timeout)
        items = [encoded(client, value, "the item", MAX_ITEM_BYTES) for value in values]
        bodies = [frames.encode(FrameKind.ENTRY, meta, data) for meta, data in items]
        while bodies:
            path = self._path("QUEUE_ITEMS", partition, ttl=ttl, wait=waiting.next_s(), request=secrets.token_hex(8))
            answer = client.request("POST", path, HEADERS, b"".join(bodies[:MAX_AT_ONCE]))
            stored = int(_json(answer.body)["stored"])
            bodies = bodies[stored:]
            if bodies and not stored and waiting.over():
                raise queue.Full

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
        from squall.stored import answer_frames, decoded

        client, waiting, taken = _client(), _Waiting(block, timeout), list[Any]()
        while True:
            wait_s = 0.0 if taken else waiting.next_s()
            number, request = min(most - len(taken), MAX_AT_ONCE), secrets.token_hex(8)
            path = self._path("QUEUE_TAKEN", partition, most=number, wait=wait_s, request=request)
            try:
                answer = client.request("POST", path)
            except SquallError:
                if taken:  # nobody else will get these
                    return taken
                raise
            found = [decoded(client, f.meta, f.payload) for f in answer_frames(answer.body)]
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
        return int(_json(_client().request("GET", self._counted(partition, total)).body)["count"])

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

        if partition is not None and not 1 <= len(str(partition).encode()) <= 64:
            raise InvalidError(f"a partition is text of 1 to 64 bytes, got {partition!r:.100}")
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


def _client() -> Client:
    return session_and_environment(None)[0].client


def _json(body: bytes) -> Any:
    import json

    return json.loads(body)
