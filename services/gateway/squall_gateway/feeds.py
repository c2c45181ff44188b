"""A feed: something endless, read by one task and written to a client by another, with signs of life in between.

Owns back-pressure (a bounded queue), batching (what is ready goes out at once) and the end: the client leaves, the
gateway drains, or the source ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from squall.errors import SquallError
from squall_gateway.answers import Headers, begin_stream, end_stream, send_part
from squall_gateway.edge import Exchange

KEEPALIVE_S = 5.0
QUEUE = 1000
PART_BYTES = 256 * 1024
"""What is ready is joined up to about this size: one write instead of hundreds."""


class Ended(Exception):
    """The feed is over; not an error."""


class Feed:
    """One streamed answer."""

    def __init__(self, exchange: Exchange, draining: asyncio.Event) -> None:
        self._exchange = exchange
        self._draining = draining
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE)

    async def run(
        self,
        source: AsyncGenerator[bytes, None],
        headers: Headers,
        keepalive: Callable[[], bytes],
        on_error: Callable[[SquallError], bytes],
    ) -> None:
        """Write the source to the client until one of them is over."""
        await begin_stream(self._exchange.send, headers)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(source, on_error))
                tasks.create_task(self._leave_with_client())
                tasks.create_task(self._leave_when_draining())
                tasks.create_task(self._write(keepalive))
        except* Ended:
            pass

    async def _read(self, source: AsyncGenerator[bytes, None], on_error: Callable[[SquallError], bytes]) -> None:
        try:
            async with aclosing(source) as parts:
                async for part in parts:
                    await self._queue.put(part)
        except SquallError as error:
            await self._queue.put(on_error(error))
        await self._queue.put(None)

    async def _write(self, keepalive: Callable[[], bytes]) -> None:
        while True:
            try:
                async with asyncio.timeout(KEEPALIVE_S):
                    part = await self._queue.get()
            except TimeoutError:
                part = keepalive()
            parts, size, over = [], 0, part is None
            while part is not None:
                parts.append(part)
                size += len(part)
                if size >= PART_BYTES or self._queue.empty():
                    break
                part = self._queue.get_nowait()
                over = part is None
            if parts:
                await send_part(self._exchange.send, b"".join(parts))
            if over:
                await end_stream(self._exchange.send)
                raise Ended

    async def _leave_with_client(self) -> None:
        while (await self._exchange.receive())["type"] != "http.disconnect":
            pass
        raise Ended

    async def _leave_when_draining(self) -> None:
        await self._draining.wait()
        await end_stream(self._exchange.send)
        raise Ended
