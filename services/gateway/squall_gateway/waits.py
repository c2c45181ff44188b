"""Waiting for results: who waits for which input, and the three ways a result gets here.

A call taken here is answered to our own inbox. Everybody else subscribes to `done.`, then reads RESULTS once. Both are
plain messages and may get lost, so whoever still waits reads RESULTS again, after 5 s and after every reconnect.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from squall.ids import shard_of
from squall_bus import Bus, Message
from squall_bus.subscribing import Subscription
from squall_contracts import subjects
from squall_contracts.subjects import parse_call

REREAD_S = 5.0
MAX_REREAD_S = 40.0
"""Doubles from the first to this: a lost reply is rare, and thousands may wait for hours."""
NOTICE_S = 0.2
"""Waits that are over sooner never look whether their client is still there."""

Receive = Callable[[], Awaitable[dict[str, Any]]]


class NoResult(enum.Enum):
    """Why a wait ended without a result."""

    LATER = "later"
    """Not in the time given: ask again."""
    GONE = "gone"
    """The client is gone."""


class Wait:
    """One request that waits for one input."""

    __slots__ = ("_done", "_key", "_timer", "future", "interval_s", "reread_at", "stream", "subject", "waits")

    def __init__(self, waits: Waits, key: str, stream: str, subject: str) -> None:
        self.waits = waits
        self.stream = stream
        self.subject = subject
        """Of the result's record."""
        self.future: asyncio.Future[bytes | NoResult] = waits.loop.create_future()
        self.interval_s = REREAD_S
        self.reread_at = waits.loop.time() + REREAD_S
        self._key = key
        self._done: Subscription | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def reply_to(self) -> str:
        """Where an agent may answer."""
        return f"{self.waits.inbox}.{self._key}"

    def settle(self, outcome: bytes | NoResult) -> None:
        """The first outcome counts."""
        if not self.future.done():
            self.future.set_result(outcome)

    async def look(self) -> None:
        """For calls whose reply goes elsewhere: listen for the record, then see whether it is there already."""
        call = parse_call(self.subject)
        done = subjects.done(call.region, call.owner, call.call, call.index)
        self._done = await self.waits.bus.subscribe(done, lambda message: self.settle(message.data))
        await self.waits.read([self])

    async def result(self, timeout_s: float, receive: Receive) -> bytes | NoResult:
        """The record, or why there is none yet."""
        if not self.future.done():
            if timeout_s <= NOTICE_S:
                self._later(timeout_s)
            else:
                self._timer = self.waits.loop.call_later(NOTICE_S, self._watch_client, timeout_s - NOTICE_S, receive)
        return await self.future

    def _later(self, timeout_s: float) -> None:
        self._timer = self.waits.loop.call_later(timeout_s, self.settle, NoResult.LATER)

    def _watch_client(self, rest_s: float, receive: Receive) -> None:
        self._later(rest_s)
        self.waits.start(self._notice_disconnect(receive))

    async def _notice_disconnect(self, receive: Receive) -> None:
        # Ends by itself: the server answers every request with a disconnect message once it is over.
        while (await receive())["type"] != "http.disconnect":
            pass
        self.settle(NoResult.GONE)

    async def close(self) -> None:
        """Nobody waits any more."""
        self.waits.forget(self._key, self)
        if self._timer is not None:
            self._timer.cancel()
        if self._done is not None:
            await self._done.close()


class Waits:
    """Every open wait of this gateway."""

    def __init__(self, bus: Bus, start: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self.bus = bus
        self.loop = asyncio.get_running_loop()
        self.inbox = bus.new_inbox()
        self.start = start
        """Runs a coroutine in the service's task group."""
        self._open: dict[str, list[Wait]] = {}
        self._reread_all = False
        self._draining = False
        self._inbox_subscription: Subscription | None = None
        self._stop_listening = bus.on_reconnect(self._on_reconnect)

    async def open_inbox(self) -> None:
        """Listen for replies."""
        self._inbox_subscription = await self.bus.subscribe(f"{self.inbox}.>", self._on_reply)

    async def close(self) -> None:
        """Stop listening; whoever waits is told to ask again."""
        self.drain()
        self._stop_listening()
        if self._inbox_subscription is not None:
            await self._inbox_subscription.close()

    def drain(self) -> None:
        """End every wait, and every later one at once: clients go on waiting at another gateway."""
        self._draining = True
        for wait in self._all():
            wait.settle(NoResult.LATER)

    def __len__(self) -> int:
        return sum(map(len, self._open.values()))

    def open(self, call: str, index: int, workspace: str) -> Wait:
        """A wait for one input; closed by who opened it."""
        region = self.bus.topology.region
        stream = subjects.results_stream(region, shard_of(call))
        key = f"{workspace}.{call}.{index}"  # callers choose the ids of calls: two workspaces may have the same one
        wait = Wait(self, key, stream, subjects.result(region, workspace, call, index))
        self._open.setdefault(key, []).append(wait)
        if self._draining:
            wait.settle(NoResult.LATER)
        return wait

    def forget(self, key: str, wait: Wait) -> None:
        """The wait is over."""
        waits = self._open.get(key, [])
        if wait in waits:
            waits.remove(wait)
        if not waits:
            self._open.pop(key, None)

    def _on_reply(self, message: Message) -> None:
        self.deliver(message.subject[len(self.inbox) + 1 :], message.data)

    def deliver(self, key: str, record: bytes) -> None:
        """A result record arrived for `<workspace>.<call>.<index>`."""
        for wait in self._open.get(key, ()):
            wait.settle(record)

    def _on_reconnect(self) -> None:
        self._reread_all = True

    def _all(self) -> list[Wait]:
        return [wait for waits in self._open.values() for wait in waits]

    async def tick(self) -> None:
        """Read again for those whose reply may have got lost."""
        now, everybody = self.loop.time(), self._reread_all
        due = [wait for wait in self._all() if everybody or wait.reread_at <= now]
        for wait in due:
            wait.interval_s = min(2 * wait.interval_s, MAX_REREAD_S)
            wait.reread_at = now + wait.interval_s
        if due:
            await self.read(due)
        if everybody:
            self._reread_all = False

    async def read(self, waits: list[Wait]) -> None:
        """Look into RESULTS."""
        by_stream: dict[str, dict[str, list[Wait]]] = {}
        for wait in waits:
            by_stream.setdefault(wait.stream, {}).setdefault(wait.subject, []).append(wait)
        for stream, by_subject in by_stream.items():
            for subject, stored in (await self.bus.get_many(stream, list(by_subject))).items():
                for wait in by_subject.get(subject, ()):
                    wait.settle(stored.data)
