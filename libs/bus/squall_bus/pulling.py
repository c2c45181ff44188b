"""Pulling work from a durable consumer: raw pull requests and their bookkeeping.

nats-py's `fetch` makes two tasks and five loop turns a message (31k/s against 78k/s) and stalls after a reconnect.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from squall_bus import js
from squall_bus.client import Sink
from squall_bus.consume import event, run_callback
from squall_bus.delivery import Delivery
from squall_bus.link import Link
from squall_bus.wire import description_of, header_of, status_of

SILENCE_S = 1.0
"""A request without any status so long after its expiry was lost on the way."""
PAUSE_S = 0.25
"""Before asking again after a refusal (no consumer, too many open pulls)."""
PULL_INBOX = "p"
_EXPIRED = 408
_HEARTBEAT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How a puller asks."""

    group: str | None = None
    priority: int = 0
    expires_s: float = 10.0
    on_status: Callable[[int, str], None] | None = None
    acked: bool = True
    """False for readers: what comes too late is not given back, because nobody else waits for it."""

    @property
    def body(self) -> bytes:
        """The request after its batch size."""
        in_group = f',"group":"{self.group}","priority":{self.priority}' if self.group else ""
        return f'"expires":{js.nanoseconds(self.expires_s)}{in_group}}}'.encode()


class Puller:
    """Open pull requests on one consumer.

    `want(n)` says how many more messages are welcome from now on. Each delivery uses one up; requests that expire, are
    lost in a reconnect or are refused are made again by the puller itself.
    """

    def __init__(self, link: Link, on_delivery: Callable[[Delivery], None], next_subject: str, asking: Asking) -> None:
        self._link = link
        self._on_delivery = on_delivery
        self._next_subject = next_subject.encode()
        self._request = asking.body
        self._expires_s = asking.expires_s
        self._on_status = asking.on_status
        self._acked = asking.acked
        self._sink: Sink | None = None
        self._inbox = b""
        self._wanted = 0
        self._outstanding = 0
        self._asking = False
        self._closing = False
        self._silent_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stop_listening = (link.on_disconnect(self._lost), link.on_reconnect(self._listen))

    @classmethod
    async def open(
        cls,
        link: Link,
        stream: str,
        consumer: str,
        on_delivery: Callable[[Delivery], None],
        asking: Asking,
    ) -> Self:
        self = cls(link, on_delivery, f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", asking)
        self._listen()
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def outstanding(self) -> int:
        """Asked for and not delivered yet."""
        return self._outstanding

    def want(self, number: int) -> None:
        """Ask for as many as are missing to have `number` outstanding. Lowering it does not take requests back."""
        self._wanted = number
        if number > self._outstanding:
            self._ask_soon()

    async def close(self) -> None:
        """Ask for nothing more. The inbox is unsubscribed first, so that no open pull can take a message away;
        what is already on its way is given back."""
        if self._closing:
            return
        self._closing = True
        for stop in self._stop_listening:
            stop()
        if self._timer is not None:
            self._timer.cancel()
        if self._sink is not None:
            try:
                await self._link.close_sink(self._sink)
            finally:
                self._link.drop_sink(self._sink)
        self._outstanding = 0

    # ------------------------------------------------------------------ asking

    def _listen(self) -> None:
        """A fresh inbox for each connection: requests of the old one cannot deliver on top of the new ones."""
        inbox = self._link.new_inbox(PULL_INBOX)
        self._inbox = inbox.encode()
        self._sink = self._link.open_sink(inbox + ".*", self._deliver)
        self._ask_soon()

    def _lost(self) -> None:
        if self._sink is not None:
            self._link.drop_sink(self._sink)
            self._sink = None
        self._outstanding = 0

    def _ask_soon(self) -> None:
        """At the end of this turn of the loop, so that many finished calls become one request."""
        if not self._asking:
            self._asking = True
            self._link.loop.call_soon(self._ask)

    def _ask_later(self) -> None:
        if not self._asking:
            self._asking = True
            self._link.loop.call_later(PAUSE_S, self._ask)

    def _ask(self) -> None:
        self._asking = False
        missing = self._wanted - self._outstanding
        if missing <= 0 or self._closing or self._sink is None or not self._link.connected:
            return
        self._outstanding += missing
        self._silent_at = self._link.loop.time() + self._expires_s + SILENCE_S
        # The batch size is the last token of the inbox, so that a status tells how much it is about.
        self._link.write_publish(
            self._next_subject, b"%b.%d" % (self._inbox, missing), b"", b'{"batch":%d,%b' % (missing, self._request)
        )
        if self._timer is None:
            self._timer = self._link.loop.call_at(self._silent_at, self._check_silence)

    def _check_silence(self) -> None:
        """Every request has ended by now, with a delivery or a status; what is still counted was lost."""
        self._timer = None
        if self._outstanding == 0 or self._closing:
            return
        if self._link.loop.time() < self._silent_at:
            self._timer = self._link.loop.call_at(self._silent_at, self._check_silence)
            return
        event(logging.WARNING, "bus_pull_lost", consumer=self._next_subject.decode(), outstanding=self._outstanding)
        self._outstanding = 0
        self._ask_soon()

    # ------------------------------------------------------------------ what comes

    def _deliver(self, subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        if not reply:
            self._status(subject, headers)
            return
        delivery = Delivery(self._link, subject, reply, headers, data)
        if self._closing:
            if self._acked:
                delivery.nak()
            return
        self._outstanding = max(0, self._outstanding - 1)
        self._wanted = max(0, self._wanted - 1)
        self._link.stats.delivered += 1
        run_callback(self._on_delivery, delivery, self._link.stats)

    def _status(self, subject: bytes, headers: bytes) -> None:
        status = status_of(headers)
        if status == _HEARTBEAT:
            return
        unused = header_of(headers, b"Nats-Pending-Messages") or subject.rsplit(b".", 1)[1]
        self._outstanding = max(0, self._outstanding - int(unused))
        if self._on_status is not None:
            self._on_status(status, description_of(headers))
        if status == _EXPIRED:
            self._ask_soon()
            return
        event(
            logging.INFO,
            "bus_pull_refused",
            consumer=self._next_subject.decode(),
            status=status,
            reason=description_of(headers),
        )
        self._ask_later()
