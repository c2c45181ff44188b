"""Items of generators: from the runner to whoever reads, in order, no further ahead than the reader allows.

Small items are sent at once; from the first large one on a pump uploads and sends one after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from squall.errors import SquallError
from squall.http_api.protocol import blob_ref
from squall.spec import INLINE_LIMIT_BYTES
from squall_bus import Bus, Message
from squall_contracts import subjects
from squall_contracts.calls import ItemsTaken, ItemYielded
from squall_contracts.envelope import BadMessage
from squall_gpu_agent.backend import ITEM_WINDOW, Item, OnItem
from squall_gpu_agent.containers import PooledContainer
from squall_gpu_agent.held import Held
from squall_gpu_agent.identity import Identity
from squall_service.blobs import Blobs
from squall_service.telemetry import log


class ItemStreams:
    """Opens one stream of items for each generator that runs."""

    def __init__(self, bus: Bus, identity: Identity, blobs: Blobs) -> None:
        self._bus = bus
        self._identity = identity
        self._blobs = blobs

    @asynccontextmanager
    async def open(self, held: Held, container: PooledContainer) -> AsyncIterator[OnItem]:
        """What to give to `Container.run`. All items are out when the block has ended."""
        stream = ItemStream(self._bus, self._identity, self._blobs, held, container)
        credit = subjects.credit(self._identity.region, held.request.call)
        subscription = await self._bus.subscribe(credit, stream.on_credit)
        try:
            async with asyncio.TaskGroup() as group:
                pump = group.create_task(stream.pump())
                yield stream.on_item
                stream.end()
                await pump
        finally:
            await subscription.close()

    @staticmethod
    def unread(held: Held, container: PooledContainer) -> OnItem | None:
        """For a generator whose items nobody reads (spawned): it must not wait for a reader for ever."""
        if not container.yields:
            return None

        def on_item(item: Item) -> None:
            if item.path is not None:
                item.path.unlink(missing_ok=True)
            container.container.credit(*held.key, 1)

        return on_item


class ItemStream:
    """The items of one attempt."""

    def __init__(self, bus: Bus, identity: Identity, blobs: Blobs, held: Held, container: PooledContainer) -> None:
        self._bus = bus
        self._blobs = blobs.of(held.request.workspace)
        self._held = held
        self._container = container
        self._subject = subjects.items(identity.region, held.request.call)
        self._queue: asyncio.Queue[Item | None] = asyncio.Queue()
        self._in_pump = 0
        self._taken = 0

    def on_credit(self, message: Message) -> None:
        """The reader has taken items: the generator may yield as many more."""
        try:
            taken = ItemsTaken.decode(message.data)
        except BadMessage as error:
            log.warning("credit_not_understood", call=self._held.request.call, reason=error.message)
            return
        if taken.attempt == self._held.attempt and taken.taken > self._taken:
            self._container.container.credit(*self._held.key, taken.taken - self._taken)
            self._taken = taken.taken

    def on_item(self, item: Item) -> None:
        """One item from the runner."""
        if item.seq >= self._taken + 2 * ITEM_WINDOW:
            # The runner holds back by itself at one window; one that does not would fill the bus.
            self._container.container.kill("it yielded more items than its reader allowed")
            return
        if self._in_pump == 0 and item.payload is not None and len(item.payload) <= INLINE_LIMIT_BYTES:
            self._send(item, item.payload, None)
        else:
            self._in_pump += 1
            self._queue.put_nowait(item)

    def end(self) -> None:
        """No more items come."""
        self._queue.put_nowait(None)

    async def pump(self) -> None:
        """Send what could not be sent at once."""
        while (item := await self._queue.get()) is not None:
            try:
                await self._send_large(item)
            except (SquallError, OSError) as error:
                # The reader sees a gap in `seq` and fails; the attempt itself goes on.
                log.warning("item_not_sent", call=item.call, seq=item.seq, reason=str(error))
            finally:
                self._in_pump -= 1

    async def _send_large(self, item: Item) -> None:
        if item.path is not None:
            sha256, size = await self._blobs.put_file(item.path)
            item.path.unlink(missing_ok=True)
            self._send(item, b"", blob_ref(sha256, size))
        elif item.payload is not None and len(item.payload) > INLINE_LIMIT_BYTES:
            sha256, size = await self._blobs.put_bytes(item.payload)
            self._send(item, b"", blob_ref(sha256, size))
        else:
            self._send(item, item.payload or b"", None)

    def _send(self, item: Item, payload: bytes, blob: str | None) -> None:
        message = ItemYielded(
            call=item.call,
            attempt=self._held.attempt,
            seq=item.seq,
            encoding=item.encoding.value,
            payload=payload,
            blob=blob,
            workspace=self._held.request.workspace,
        )
        self._bus.send(self._subject, message.encode())
