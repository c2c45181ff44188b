"""Waking: 0 -> 1 at the first call of a pool, by whichever autoscaler hears of it first.

Owns one subscription for each pool at zero: stored inputs, headers only, one autoscaler of the queue group gets each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from squall_bus import Bus, Message, Subscription
from squall_contracts import subjects
from squall_service.telemetry import log

QUEUE_GROUP = "autoscaler"

CHECKED_AT_ONCE = 64
"""At the start of a large installation the leader's next tick finds what waits, with one request for all pools."""

Start = Callable[[Coroutine[Any, Any, None], str], object]
"""Starts a task in the service's task group."""
Wake = Callable[[str, str], Coroutine[Any, Any, None]]
"""(pool, call) -> write 1."""


class Waker:
    """Who listens for which pool."""

    def __init__(self, bus: Bus, start: Start, wake: Wake, check: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        self._bus = bus
        self._start = start
        self._wake = wake
        self._check = check
        self._wanted: set[str] = set()
        self._open: dict[str, Subscription] = {}
        self._waking: set[str] = set()
        self._changed = asyncio.Event()

    def listen(self, pool: str, at_zero: bool) -> None:
        """Whether the pool is one whose first call has to be heard."""
        if at_zero == (pool in self._wanted):
            return
        if at_zero:
            self._wanted.add(pool)
        else:
            self._wanted.discard(pool)
        self._changed.set()

    async def work(self) -> None:
        """Open and close subscriptions as they are wanted."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            for pool in self._open.keys() - self._wanted:
                await self._open.pop(pool).close()
            new = self._wanted - self._open.keys()
            for pool in new:
                self._open[pool] = await self._subscribe(pool)
                if len(new) <= CHECKED_AT_ONCE:
                    # What was stored before the subscription was there is found by asking, once.
                    self._start(self._check(pool), f"check {pool}")

    async def _subscribe(self, pool: str) -> Subscription:
        def on_arrived(message: Message) -> None:
            if pool in self._waking or pool not in self._wanted:
                return
            self._waking.add(pool)
            self._start(self._wake_once(pool, subjects.parse_call(message.subject).call), f"wake {pool}")

        subject = subjects.arrived_at_pool(self._bus.topology.region, pool)
        return await self._bus.subscribe(subject, on_arrived, queue=QUEUE_GROUP)

    async def _wake_once(self, pool: str, call: str) -> None:
        try:
            await self._wake(pool, call)
        finally:
            self._waking.discard(pool)

    async def close(self) -> None:
        """Leave the queue group: other autoscalers get what comes."""
        self._wanted.clear()
        for subscription in self._open.values():
            await subscription.close()
        self._open.clear()
        log.debug("waker_closed")
