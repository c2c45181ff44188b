"""Pending calls of a pool that cannot start: ended with the error of the start, so that their callers see it at once.

Only for ephemeral apps, whose author sits in front of the terminal, and only for errors of the user's own code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from squall.spec import Outcome
from squall_bus import Bus, Delivery
from squall_contracts import subjects
from squall_contracts.envelope import BadMessage
from squall_contracts.functions import FunctionRecord
from squall_contracts.retention import result_ttl_s
from squall_gpu_agent import results
from squall_gpu_agent.held import KINDS, read_request
from squall_gpu_agent.identity import Identity
from squall_gpu_agent.leases import Leases
from squall_gpu_agent.policy.lifecycle import Event
from squall_gpu_agent.settlement import Settlement
from squall_service.clock import Clock
from squall_service.telemetry import log

BATCH = 256
AGAIN_S = 0.25
"""A second look: the call that caused the start may have been on its way from JOURNAL to WORK at the first."""
SILENCE_S = 0.5
"""Nothing more is coming: what the consumer counts as pending was taken by somebody else."""


class PendingCalls:
    """Ends waiting calls without running them."""

    def __init__(
        self,
        bus: Bus,
        identity: Identity,
        clock: Clock,
        *,
        leases: Leases,
        settlement: Settlement,
        serves: Callable[[str], bool],
    ) -> None:
        self._bus = bus
        self._identity = identity
        self._clock = clock
        self._leases = leases
        self._settlement = settlement
        self._serves = serves
        """Whether any node has a ready container of a pool: then its calls can run, and nothing is ended."""

    async def fail(self, pool: str, function: FunctionRecord, error: dict[str, Any], pickled: bytes | None) -> None:
        """End every waiting call of the pool with this error."""
        ended = 0
        for pause_s in (0.0, AGAIN_S):
            await self._clock.sleep(pause_s)
            if self._serves(pool):
                break
            ended += await self._pass(pool, function, error, results.exception_payload(pickled))
        log.info("pending_calls_failed", pool=pool, calls=ended)

    async def _pass(self, pool: str, function: FunctionRecord, error: dict[str, Any], payload: bytes) -> int:
        async with asyncio.TaskGroup() as group:
            counts = [
                group.create_task(self._fail_shard(shard, pool, function, error, payload))
                for shard in range(self._identity.shards)
            ]
        return sum(count.result() for count in counts)

    async def _fail_shard(
        self, shard: int, pool: str, function: FunctionRecord, error: dict[str, Any], payload: bytes
    ) -> int:
        stream = subjects.work_stream(self._identity.region, shard)
        ended = 0
        while (info := await self._bus.consumer_info(stream, pool)) is not None and info.pending:
            arrived: asyncio.Queue[Delivery] = asyncio.Queue()
            puller = await self._bus.pull(stream, pool, arrived.put_nowait)
            wanted = min(info.pending, BATCH)
            puller.want(wanted)
            try:
                async with asyncio.TaskGroup() as group:
                    got = 0
                    while got < wanted and (delivery := await _next(arrived)) is not None:
                        got += 1
                        group.create_task(self._fail_call(delivery, function, error, payload))
            finally:
                await puller.close()
            ended += got
            if not got:
                break
        return ended

    async def _fail_call(
        self, delivery: Delivery, function: FunctionRecord, error: dict[str, Any], payload: bytes
    ) -> None:
        try:
            request = read_request(delivery.data)
        except BadMessage:
            delivery.nak()  # a pool with a container settles it
            return
        held = self._leases.take(request, delivery)
        try:
            held.advance(Event.SETTLED_UNSTARTED)
            result = results.without_attempt(request, Outcome.FAILED, error, self._clock.now(), payload)
            await self._settlement.record(
                held,
                result,
                result_ttl_s(function.spec, KINDS[request.kind], keyed=request.keyed),
                "finished",
                "start failed",
            )
        finally:
            self._leases.drop(held)


async def _next(arrived: asyncio.Queue[Delivery]) -> Delivery | None:
    try:
        async with asyncio.timeout(SILENCE_S):
            return await arrived.get()
    except TimeoutError:
        return None
