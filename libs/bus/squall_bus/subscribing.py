"""Plain subscriptions (core NATS): callbacks, one message at a time."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Self, cast

from squall_bus.consume import await_callback, run_callback
from squall_bus.link import Link
from squall_bus.records import Message
from squall_bus.wire import subject_bytes

MAX_BACKLOG = 10_000
"""Messages that wait for an async callback; beyond that the newest are dropped and counted."""


class Subscription:
    """Interest in a subject until `close()`. Raises BusForbidden when our user may not listen there."""

    def __init__(
        self, link: Link, callback: Callable[[Message], Any], subject: str, queue: str, *, is_async: bool
    ) -> None:
        self._link = link
        self._callback = callback
        self._backlog: deque[Message] = deque()
        self._wakeup: asyncio.Future[None] | None = None
        self._worker: asyncio.Task[None] | None = None
        self.dropped = 0
        if is_async:
            self._worker = link.start(self._work(), f"bus subscription {subject}")
        self._sink = link.open_sink(subject, self._queue if is_async else self._call, queue)

    @classmethod
    async def open(cls, link: Link, subject: str, callback: Callable[[Message], Any], queue: str | None) -> Self:
        subject_bytes(subject)
        is_async = inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(
            getattr(callback, "__call__", None)  # noqa: B004  # an object with an async __call__
        )
        self = cls(link, callback, subject, queue or "", is_async=is_async)
        await link.flushed(5.0)
        if (denied := link.denied_subscription(subject)) is not None:
            await self.close()
            raise denied
        return self

    def _call(self, subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        message = Message(subject.decode(), reply.decode(), data, headers)
        run_callback(self._callback, message, self._link.stats)

    def _queue(self, subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        if len(self._backlog) >= MAX_BACKLOG:
            self.dropped += 1
            return
        self._backlog.append(Message(subject.decode(), reply.decode(), data, headers))
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    async def _work(self) -> None:
        callback = cast("Callable[[Message], Awaitable[None]]", self._callback)
        while True:
            while self._backlog:
                await await_callback(callback, self._backlog.popleft(), self._link.stats)
            self._wakeup = self._link.loop.create_future()
            await self._wakeup

    async def close(self) -> None:
        """No callback starts after this returned."""
        self._link.drop_sink(self._sink)
        if self._worker is not None and self._worker is not asyncio.current_task():
            self._worker.cancel()
            await asyncio.wait([self._worker])
