"""Watching a bucket: first what is there, then what changes; across reconnects by reading again and comparing."""

from __future__ import annotations

from collections import deque
from typing import Any, Self

from squall_bus.delivery import Delivery
from squall_bus.link import Link
from squall_bus.ordered import Interrupted, OrderedReader, reopen
from squall_bus.records import Change

SYNCED = Change("", None, 0, synced=True)
QUIET_S = 0.5
"""While present values are read, a pause as long as this is looked into."""


class Watch:
    """One watch; made by `KeyValue.watch`. A cancelled or timed-out wait loses nothing."""

    def __init__(self, link: Link, stream: str, stem: str, prefix: str) -> None:
        self._link = link
        self._stream = stream
        self._stem = stem
        self._prefix = prefix
        self._revisions: dict[str, int] = {}
        self._reader: OrderedReader | None = None
        self._unseen: set[str] | None = None
        """While present values are read: keys that were known before and have not come again."""
        self._ready: deque[Change] = deque()
        self._synced = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reader is not None:
            await self._reader.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while not self._ready:
            try:
                await self._step()
            except Interrupted:
                reader, self._reader = self._reader, None
                if reader is not None:
                    await reader.close()
        return self._ready.popleft()

    async def _step(self) -> None:
        """Take in one message, or find out that all present values have been read."""
        if self._reader is None:
            self._reader = await reopen(self._link, self._stream, self._config(), first=not self._synced)
            self._unseen = set(self._revisions)
            if self._reader.initial_pending == 0:
                self._all_read()
            return
        if self._unseen is None:
            self._take(await self._reader.next())
            return
        try:
            delivery = await self._reader.next(QUIET_S)
        except TimeoutError:
            # The last present value expired before it was delivered.
            if await self._reader.pending() == 0:
                self._all_read()
            return
        self._take(delivery)
        if delivery.pending == 0:
            self._all_read()

    def _all_read(self) -> None:
        gone, self._unseen = self._unseen or set(), None
        for key in gone:
            self._ready.append(Change(key, None, self._revisions.pop(key)))
        if not self._synced:
            self._synced = True
            self._ready.append(SYNCED)

    def _config(self) -> dict[str, Any]:
        token = self._prefix[: self._prefix.rfind(".") + 1]
        return {"filter_subject": f"{self._stem}{token}>", "deliver_policy": "last_per_subject"}

    def _take(self, delivery: Delivery) -> None:
        key, revision = delivery.subject[len(self._stem) :], delivery.stream_seq
        if not key.startswith(self._prefix):
            return
        if self._unseen is not None:
            self._unseen.discard(key)
        if delivery.header("KV-Operation") is not None:
            # Of a key that we never gave too: our user may have written it himself while this was being opened again.
            if self._revisions.pop(key, None) is not None or self._synced:
                self._ready.append(Change(key, None, revision))
        elif self._revisions.get(key) != revision:
            self._revisions[key] = revision
            self._ready.append(Change(key, delivery.data, revision))
