"""An ordered reader: a short-lived consumer in the server's memory, read by pulling, with gaps noticed.

It is never repaired. Whatever breaks it (reconnect, gap, consumer gone) raises `Interrupted`, and its user opens a new
one from where it was.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import Any, Self

from squall_bus import js
from squall_bus.delivery import Delivery
from squall_bus.errors import BusError, NotFound
from squall_bus.link import Link
from squall_bus.pulling import Asking, Puller

WINDOW = 256
"""Messages asked for ahead of the reader: its back-pressure."""
INACTIVE_S = 30.0
"""The server removes the consumer of a reader that died."""


class Interrupted(Exception):
    """The reader cannot go on without a gap."""


class OrderedReader:
    """One consumer, until it breaks."""

    def __init__(self, link: Link, stream: str) -> None:
        self._link = link
        self._stream = stream
        self._name = f"r{secrets.token_hex(8)}"
        self._buffer: deque[Delivery] = deque()
        self._wakeup: asyncio.Future[None] | None = None
        self._next_seq = 1
        self._broken = False
        self._puller: Puller | None = None
        self.initial_pending = 0
        """Matching messages when it was opened."""
        self._stop_listening = link.on_disconnect(self._break)

    @classmethod
    async def open(cls, link: Link, stream: str, config: dict[str, Any]) -> Self:
        """`config` says where to start: filter_subject, deliver_policy, opt_start_seq, headers_only."""
        self = cls(link, stream)
        try:
            await self._create(config)
        except BaseException:
            await self.close()
            raise
        return self

    async def _create(self, config: dict[str, Any]) -> None:
        subject = f"CONSUMER.CREATE.{self._stream}.{self._name}.{config['filter_subject']}"
        answer = await js.api(
            self._link,
            subject,
            {
                "stream_name": self._stream,
                "config": {
                    "name": self._name,
                    "ack_policy": "none",
                    "replay_policy": "instant",
                    "mem_storage": True,
                    "num_replicas": 1,
                    "inactive_threshold": js.nanoseconds(INACTIVE_S),
                    **config,
                },
            },
        )
        self.initial_pending = answer["num_pending"]
        asking = Asking(on_status=self._on_status, acked=False)
        self._puller = await Puller.open(self._link, self._stream, self._name, self._on_delivery, asking)
        self._puller.want(WINDOW)

    async def close(self) -> None:
        self._stop_listening()
        if self._puller is None:
            return
        await self._puller.close()
        if self._link.connected:
            # Not awaited: when it gets lost, the server removes the consumer by itself.
            self._link.send(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._name}", b"")

    async def next(self, timeout_s: float | None = None) -> Delivery:
        """The next message; TimeoutError when none came in time, Interrupted when it broke."""
        if not self._buffer:
            async with asyncio.timeout(timeout_s):
                while not self._buffer:
                    if self._broken:
                        raise Interrupted
                    self._wakeup = self._link.loop.create_future()
                    await self._wakeup
        delivery = self._buffer.popleft()
        puller = self._puller
        if puller is not None and puller.outstanding + len(self._buffer) <= WINDOW // 2:
            puller.want(WINDOW - len(self._buffer))
        return delivery

    async def pending(self) -> int:
        """Matching messages that were not delivered yet."""
        try:
            answer = await js.api(self._link, f"CONSUMER.INFO.{self._stream}.{self._name}")
        except BusError:
            self._break()
            return 1
        return int(answer["num_pending"])

    def _on_delivery(self, delivery: Delivery) -> None:
        if self._broken:
            return
        if delivery.consumer_seq != self._next_seq:
            self._break()
            return
        self._next_seq += 1
        self._buffer.append(delivery)
        self._wake()

    def _on_status(self, status: int, _: str) -> None:
        if status != 408:  # anything but an expired request: the consumer is gone or moved
            self._break()

    def _break(self) -> None:
        self._broken = True
        self._wake()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


RETRY_S = 0.1


async def reopen(link: Link, stream: str, config: dict[str, Any], *, first: bool) -> OrderedReader:
    """Open, waiting as long as it takes for the bus to come back.

    Only the first time a missing stream is an error: streams in memory are gone for a moment after a restart.
    """
    while True:
        try:
            return await OrderedReader.open(link, stream, config)
        except BusError as error:
            if not error.retryable and (first or not isinstance(error, NotFound)):
                raise
        await asyncio.sleep(RETRY_S)
