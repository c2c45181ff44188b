"""Delivering: takes deliveries from their queue, posts them, writes down what came of it.

All state is in the bucket: a try that was not written down is made again by whoever gets the delivery next, after
ACK_WAIT_S. Each step is a compare-and-set, so that of two gateways that have the same delivery one writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import random

from squall.errors import SquallError
from squall_bus import Bus, BusError, ConsumerSpec, Delivery, Puller, WrongRevision
from squall_contracts import subjects
from squall_contracts.envelope import BadMessage, NewerMessage
from squall_contracts.webhooks import (
    DEAD,
    DELIVERED,
    KEPT_S,
    LETTER_S,
    PENDING,
    WEBHOOKS,
    WebhookDelivery,
    WebhookLetter,
    delivery_key,
    letter_key,
)
from squall_gateway.policy.webhook_targets import endpoint_of
from squall_gateway.policy.webhook_tries import Again, Answer, Delivered, GivenUp, decide
from squall_gateway.policy.webhook_turns import SHARE, Turns
from squall_gateway.webhooks.intake import NEWER_S, Start
from squall_gateway.webhooks.signing import Signing, signed_headers
from squall_service.clock import Clock
from squall_service.failpoints import failpoint
from squall_service.telemetry import log

CONSUMER = "deliver"
ACK_WAIT_S = 60.0
"""Three times as long as a request may take: no other gateway sends it meanwhile."""
AT_ONCE = 4 * SHARE
NO_KEY_S = 60.0
"""Until it is tried again when there is no key to sign with."""
RECENT = 12

Send = Callable[[str, Mapping[str, str], bytes], Awaitable[Answer]]


@dataclass(slots=True)
class Delivering:
    """One gateway's part of the deliveries."""

    bus: Bus
    signing: Signing
    send: Send
    schedule_s: Sequence[float]
    clock: Clock
    start: Start
    _turns: Turns = field(default_factory=Turns)
    _shares: Turns = field(default_factory=lambda: Turns(SHARE))
    _running: set[asyncio.Task[None]] = field(default_factory=set)
    _puller: Puller | None = None

    async def open(self) -> None:
        """Take deliveries from now on."""
        stream = subjects.kv_stream(WEBHOOKS)
        every = subjects.webhook_deliveries()
        wanted = ConsumerSpec(name=CONSUMER, filter_subject=every, ack_wait_s=ACK_WAIT_S, prioritized=False)
        await self.bus.ensure_consumer(stream, wanted)
        self._puller = await self.bus.pull(stream, CONSUMER, self._on_delivery, group=None)
        self._puller.want(AT_ONCE)

    async def close(self, within_s: float) -> None:
        """Take no more, and let open requests end; what does not is sent again by another gateway."""
        if self._puller is not None:
            await self._puller.close()
        if self._running:
            await asyncio.wait(self._running, timeout=within_s)

    def _on_delivery(self, delivery: Delivery) -> None:
        task = self.start(self._one(delivery), f"webhook {delivery.subject}")
        self._running.add(task)
        task.add_done_callback(self._on_ended)

    def _on_ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._puller is not None:
            self._puller.want(AT_ONCE - len(self._running))

    async def _one(self, delivery: Delivery) -> None:
        """One delivery; what fails is delivered again."""
        try:
            await self.on_delivery(delivery)
        except BusError as error:
            log.warning("webhook_not_written_down", subject=delivery.subject, reason=error.message)
        except Exception as error:  # noqa: BLE001 — a consume loop: one bad record must not end it for all
            log.error("webhook_broke", subject=delivery.subject, error=error)

    async def on_delivery(self, delivery: Delivery) -> None:
        """Send it if it is due, and write down what came of it."""
        try:
            record = WebhookDelivery.decode(delivery.data) if delivery.data else None
        except NewerMessage:
            return delivery.nak(NEWER_S)
        except BadMessage as error:
            log.error("webhook_not_understood", subject=delivery.subject, reason=error.message)
            return delivery.term()
        if record is None or record.state != PENDING:
            return delivery.ack()
        now = self.clock.now()
        if record.next_at > now:
            return delivery.nak(record.next_at - now)
        if turn_s := self._take_turn(record, now):
            return delivery.nak(turn_s)
        began = self.clock.monotonic()
        try:
            answer = await self._post(record)
        finally:
            took_s = self.clock.monotonic() - began
            for turns, name in ((self._turns, endpoint_of(record.url)), (self._shares, record.workspace)):
                turns.give_back(name, took_s, self.clock.now())
        failpoint("gateway.webhook_sent")
        if answer is None:
            return delivery.nak(NO_KEY_S)
        await self._write(self._after(record, answer, took_s), delivery.stream_seq)
        delivery.ack()
        return None

    def _take_turn(self, record: WebhookDelivery, now: float) -> float:
        """0.0: it may be sent now. Else: come back after so many seconds."""
        if turn_s := self._shares.take(record.workspace, now):
            return turn_s
        if turn_s := self._turns.take(endpoint_of(record.url), now):
            self._shares.give_back(record.workspace, None, now)
        return turn_s

    async def _post(self, record: WebhookDelivery) -> Answer | None:
        """None: it could not be signed."""
        try:
            keys = await self.signing.keys(record.workspace)
        except BusError:
            raise
        except SquallError as error:
            log.error("webhook_not_signed", workspace=record.workspace, reason=error.message)
            return None
        now = self.clock.now()
        headers = signed_headers(keys.valid(now), record.id, now, record.body)
        return await self.send(record.url, headers, record.body)

    # ------------------------------------------------------------------ what came of it

    def _after(self, record: WebhookDelivery, answer: Answer, took_s: float) -> WebhookDelivery:
        now = self.clock.now()
        recent = [[round(now, 3), round(took_s, 3), answer.reason], *record.recent][:RECENT]
        tried = replace(record, tries=record.tries + 1, recent=recent, next_at=0.0)
        match decide(answer, tried.tries, self.schedule_s, now, random()):
            case Delivered():
                return replace(tried, state=DELIVERED, body=b"")
            case Again(at=at):
                log.info("webhook_failed", call=record.call, index=record.index, reason=answer.reason, again_at=at)
                return replace(tried, next_at=at)
            case GivenUp(reason=reason):
                log.warning("webhook_given_up", call=record.call, index=record.index, reason=reason)
                return replace(tried, state=DEAD)

    async def _write(self, record: WebhookDelivery, revision: int) -> None:
        """Write it down, unless somebody else has: a later revision counts as much as ours."""
        bucket = self.bus.kv(WEBHOOKS)
        if record.state == DEAD:
            # First, so that nothing is given up without standing in the list.
            await self._list(record)
        key = delivery_key(record.workspace, record.call, record.index)
        try:
            await bucket.update(key, record.encode(), revision, ttl_s=KEPT_S[record.state])
        except WrongRevision:
            log.info("webhook_settled_elsewhere", call=record.call, index=record.index)

    async def _list(self, record: WebhookDelivery) -> None:
        """Anew, if it is there: who redrives it at the moment must not remove it."""
        letter = WebhookLetter(record.call, record.index, record.workspace, record.app, self.clock.now())
        key = letter_key(record.workspace, record.call, record.index)
        await self.bus.kv(WEBHOOKS).put(key, letter.encode(), ttl_s=LETTER_S)
