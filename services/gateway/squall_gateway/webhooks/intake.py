"""Intake: results of workspaces that have webhooks become deliveries. RESULTS is the law, whoever wrote there: an
agent, a gateway that cancels, the scheduler's reconciler.

A result is acked when its delivery is stored (or when it has none). The delivery is created only once, so that a result
that comes again makes no second one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from squall.errors import NotFoundError
from squall_bus import Bus, BusError, Delivery, KeyExists, Puller
from squall_contracts import subjects
from squall_contracts.calls import CallRequested, CallResult
from squall_contracts.envelope import BadMessage, NewerMessage
from squall_contracts.functions import FunctionRecord
from squall_contracts.webhooks import (
    KEPT_S,
    PENDING,
    USER_PREFIX,
    WEBHOOKS,
    WebhookDelivery,
    WebhookUser,
    delivery_key,
    results_consumer,
)
from squall_gateway.directory import Directory
from squall_gateway.results import ANY_POOL, Results
from squall_gateway.webhooks.events import body_of, event_of, label_of
from squall_service.clock import Clock
from squall_service.failpoints import failpoint
from squall_service.telemetry import log

AT_ONCE = 128
"""Results that one gateway has in work, of one workspace and shard."""
BATCH = 32
"""Of which it reads the calls' records together: with inline payloads they have up to 64 KiB each."""
AGAIN_S = 2.0
NEWER_S = 60.0
"""Until a newer gateway may be there for a record that this one does not understand."""

Start = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


@dataclass(slots=True)
class Intake:
    """Takes results from the consumers of all workspaces that have webhooks."""

    bus: Bus
    results: Results
    directory: Directory
    clock: Clock
    start: Start
    _pullers: dict[tuple[str, int], Puller] = field(default_factory=dict)

    async def run(self) -> None:
        """Follow who has webhooks, until cancelled."""
        async with self.bus.kv(WEBHOOKS).watch(USER_PREFIX) as changes:
            async for change in changes:
                if change.synced or change.value is None:
                    continue
                try:
                    user = WebhookUser.decode(change.value)
                except BadMessage as error:
                    log.warning("webhook_user_not_understood", key=change.key, reason=error.message)
                    continue
                for shard in range(self.bus.topology.shards):
                    await self._take(user.workspace, shard)

    async def close(self) -> None:
        """Take no more; what was taken and not handled is another gateway's."""
        for puller in self._pullers.values():
            await puller.close()

    async def _take(self, workspace: str, shard: int) -> None:
        if (workspace, shard) in self._pullers:
            return
        waiting: asyncio.Queue[Delivery] = asyncio.Queue()
        stream = subjects.results_stream(self.bus.topology.region, shard)
        puller = await self.bus.pull(stream, results_consumer(workspace), waiting.put_nowait, group=None)
        self._pullers[workspace, shard] = puller
        puller.want(AT_ONCE)
        self.start(self._work(waiting, puller), f"webhooks of {workspace} {shard}")

    async def _work(self, waiting: asyncio.Queue[Delivery], puller: Puller) -> None:
        while True:
            batch = [await waiting.get()]
            while len(batch) < BATCH and not waiting.empty():
                batch.append(waiting.get_nowait())
            try:
                await self.on_results(batch)
            except Exception as error:  # noqa: BLE001 — a consume loop: one bad record must not end it for all
                told = error.message if isinstance(error, BusError) else repr(error)
                log.warning("results_not_looked_at", results=len(batch), reason=told)
                for delivery in batch:
                    if not delivery.answered:
                        delivery.nak(AGAIN_S)
            puller.want(AT_ONCE - waiting.qsize())

    # ------------------------------------------------------------------ results

    async def on_results(self, batch: Sequence[Delivery]) -> None:
        """Store what is to be delivered of these, and ack them."""
        found: list[tuple[Delivery, CallResult]] = []
        for delivery in batch:
            try:
                found.append((delivery, CallResult.decode(delivery.data)))
            except NewerMessage:
                delivery.nak(NEWER_S)
            except BadMessage as error:
                log.error("result_not_understood", subject=delivery.subject, reason=error.message)
                delivery.term()
        asked = await self._asked([result for _, result in found])
        outcomes = await asyncio.gather(
            *(self._on_result(delivery, result, asked) for delivery, result in found), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _on_result(
        self, delivery: Delivery, result: CallResult, asked: dict[tuple[str, int], CallRequested]
    ) -> None:
        call = asked.get((result.call, result.index))
        try:
            if call is None:  # a replica may lag; the leader knows what was accepted
                call = await self.results.journal_record(result.call, result.index, result.workspace)
        except NewerMessage:
            return delivery.nak(NEWER_S)
        except BadMessage:
            pass  # its result says so; nobody can know where to tell it
        if call is not None and call.webhook:
            await self._store(call, result, delivery.published_at)
            failpoint("gateway.webhook_stored")
        delivery.ack()
        return None

    async def _asked(self, results: Sequence[CallResult]) -> dict[tuple[str, int], CallRequested]:
        """What was accepted, by call and index."""
        if not results:
            return {}
        region, shard = self.bus.topology.region, int(results[0].call[-2:])
        wanted = [subjects.call(region, each.pool or ANY_POOL, each.call, each.index) for each in results]
        found: dict[tuple[str, int], CallRequested] = {}
        for stored in (await self.bus.get_many(subjects.journal_stream(region, shard), wanted)).values():
            try:
                record = CallRequested.decode(stored.data)
            except BadMessage:
                continue
            if record.workspace == results[0].workspace:  # call ids are their callers': another's may be the same
                found[record.call, record.index] = record
        return found

    async def _store(self, asked: CallRequested, result: CallResult, recorded_at: float) -> None:
        function, ended_at = await self._function(asked), result.ended_at or recorded_at
        record = WebhookDelivery(
            call=asked.call,
            index=asked.index,
            workspace=asked.workspace,
            url=asked.webhook,
            event=event_of(result.outcome),
            app=asked.app,
            function=label_of(asked, function),
            created_at=self.clock.now(),
            state=PENDING,
            body=body_of(asked, result, function, ended_at),
        )
        key = delivery_key(asked.workspace, asked.call, asked.index)
        try:
            await self.bus.kv(WEBHOOKS).create(key, record.encode(), ttl_s=KEPT_S[PENDING])
        except KeyExists:
            pass  # this result was here before

    async def _function(self, asked: CallRequested) -> FunctionRecord | None:
        try:
            return await self.directory.function(asked.function, asked.workspace)
        except (NotFoundError, BadMessage):
            return None
