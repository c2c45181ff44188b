"""Publishing: finds the lane of a record, waits for its outcome, and drives the clock of all lanes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

from squall_bus.errors import BusError, BusUnavailable
from squall_bus.lane import Lane, Pending
from squall_bus.link import Link
from squall_bus.records import Published, Record
from squall_bus.routes import Route, Routes
from squall_bus.wire import BadMessage

Settle = Callable[[Published | BusError], None]
SWEEP_S = 0.1
MAX_WAITING = 100_000
"""Records of one stream; beyond that publishing is refused at once instead of filling the memory."""
_HEADROOM = 256
"""Batch headers and msg id, which are added to what the caller gave."""


class Publisher:
    """The lanes of all streams."""

    def __init__(self, link: Link, routes: Routes) -> None:
        self.routes = routes
        self._link = link
        self._lanes: dict[str, Lane] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._id_prefix = secrets.token_hex(6)
        self._ids = count()
        self._stop_listening = link.on_reconnect(self._pump_all)

    async def publish(self, record: Record, deadline_s: float) -> Published:
        future: asyncio.Future[Published] = self._link.loop.create_future()

        def settle(outcome: Published | BusError) -> None:
            if future.done():
                return  # the caller was cancelled
            if isinstance(outcome, BusError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        route = self.routes.of(record.subject)
        lane = self._lane(route)
        lane.caller_came()
        self._enqueue(lane, self._pending(record, deadline_s, settle))
        return await future

    async def publish_batch(self, records: Sequence[Record], deadline_s: float) -> list[Published | BusError]:
        if not records:
            return []
        outcomes: list[Published | BusError | None] = [None] * len(records)
        left = len(records)
        future: asyncio.Future[None] = self._link.loop.create_future()

        def settle_at(place: int, outcome: Published | BusError) -> None:
            nonlocal left
            outcomes[place] = outcome
            left -= 1
            if left == 0 and not future.done():
                future.set_result(None)

        lane = self._lane(self.routes.of(records[0].subject))
        lane.caller_came()
        for place, record in enumerate(records):
            try:
                self._enqueue(lane, self._pending(record, deadline_s, partial(settle_at, place)))
            except BusError as error:
                settle_at(place, error)
        await future
        return [outcome for outcome in outcomes if outcome is not None]

    # ------------------------------------------------------------------ lanes

    def _pending(self, record: Record, deadline_s: float, settle: Settle) -> Pending:
        if record.msg_id is None:
            # Made here, so that an attempt whose ack was lost is not stored a second time.
            made = f"{self._id_prefix}{next(self._ids):x}"
            record = Record(record.subject, record.data, record.headers, made, record.ttl_s)
        pending = Pending(record, self._link.loop.time() + deadline_s, settle)
        if pending.size + _HEADROOM > self._link.max_payload:
            raise BadMessage(f"record of {pending.size} bytes; the server takes {self._link.max_payload}")
        return pending

    def _enqueue(self, lane: Lane, pending: Pending) -> None:
        if len(lane.queue) >= MAX_WAITING:
            raise BusUnavailable(f"{MAX_WAITING} records wait for stream {lane.route.stream}")
        lane.add(pending)
        if self._sweep_timer is None:
            self._sweep_timer = self._link.loop.call_later(SWEEP_S, self._sweep)

    def _lane(self, route: Route) -> Lane:
        lane = self._lanes.get(route.stream)
        if lane is None:
            lane = self._lanes[route.stream] = Lane(self._link, route)
        return lane

    def _pump_all(self) -> None:
        for lane in self._lanes.values():
            lane.pump_soon()

    def _sweep(self) -> None:
        self._sweep_timer = None
        now = self._link.loop.time()
        waiting = 0
        for lane in self._lanes.values():
            lane.sweep(now)
            waiting += lane.waiting
        if waiting:
            self._sweep_timer = self._link.loop.call_later(SWEEP_S, self._sweep)

    def close(self) -> None:
        """Whoever still waits is told that the outcome is unknown."""
        self._stop_listening()
        for lane in self._lanes.values():
            lane.sweep(float("inf"))
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
