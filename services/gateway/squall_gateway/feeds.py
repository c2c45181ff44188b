"""A feed: something endless, read by one task and written to a client by another, with signs of life in between.

Owns back-pressure (a bounded queue), batching (what is ready goes out at once) and the end: the client leaves, the
gateway drains, or the source ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from squall.errors import SquallError
from squall_gateway.answers import Headers, begin_stream, end_stream, send_part
from squall_gateway.edge import Exchange

KEEPALIVE_S = 5.0
QUEUE = 1000
PART_BYTES = 256 * 1024
"""What is ready is joined up to about this size: one write instead of hundreds."""
PACE_S = 0.003
"""Between two writes: the results of a map come one by one and leave in groups. The first one never waits."""


class Ended(Exception):
    """The feed is over; not an error."""


class Feed:
    """One streamed answer."""

    def __init__(self, exchange: Exchange, draining: asyncio.Event) -> None:
        self._exchange = exchange
        self._draining = draining
        self._loop = asyncio.get_running_loop()
        self._parts: deque[bytes] = deque()
        self._over = False
        """The source has ended."""
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._written_at = self._loop.time()

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
                tasks.create_task(self._keep_alive(keepalive))
                tasks.create_task(self._write())
        except* Ended:
            pass

    async def _read(self, source: AsyncGenerator[bytes, None], on_error: Callable[[SquallError], bytes]) -> None:
        try:
            async with aclosing(source) as parts:
                async for part in parts:
                    self._add(part)
                    while len(self._parts) >= QUEUE:
                        self._room.clear()
                        await self._room.wait()
        except SquallError as error:
            self._add(on_error(error))
        self._over = True
        self._arrived.set()

    def _add(self, part: bytes) -> None:
        self._parts.append(part)
        self._arrived.set()

    async def _write(self) -> None:
        while True:
            await self._arrived.wait()
            while self._parts:
                await send_part(self._exchange.send, self._take())
                self._written_at = self._loop.time()
                await asyncio.sleep(PACE_S)
            if self._over:
                await end_stream(self._exchange.send)
                raise Ended
            self._arrived.clear()

    def _take(self) -> bytes:
        """What is ready, up to the size of a part."""
        taken, size = [], 0
        while self._parts and size < PART_BYTES:
            taken.append(self._parts.popleft())
            size += len(taken[-1])
        self._room.set()
        return b"".join(taken)

    async def _keep_alive(self, keepalive: Callable[[], bytes]) -> None:
        while True:
            quiet_s = self._loop.time() - self._written_at
            if quiet_s >= KEEPALIVE_S and not self._parts:
                self._add(keepalive())
                quiet_s = 0.0
            await asyncio.sleep(max(KEEPALIVE_S - quiet_s, PACE_S))

    async def _leave_with_client(self) -> None:
        while (await self._exchange.receive())["type"] != "http.disconnect":
            pass
        raise Ended

    async def _leave_when_draining(self) -> None:
        await self._draining.wait()
        await end_stream(self._exchange.send)
        raise Ended
