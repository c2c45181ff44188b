"""Forgotten inputs: they lie in the queue, and its consumer knows nothing of them, so nobody will ever get them.

After a SIGKILL of the bus server a consumer may come back with a state that says neither "still to deliver" nor
"leased" of a message that is there (seen with server 2.15.1, for an input whose lease had run out before). Counts tell:
more messages than the consumer knows of. Which of the delivered ones it is, they do not tell.
"""

from __future__ import annotations

from squall_bus import Bus, ConsumerInfo
from squall_contracts import subjects
from squall_scheduler.call_repairs import CallRepairs
from squall_scheduler.policy.reconciling import PATIENCE_S
from squall_scheduler.shard_tail import ShardTail, pool_and_key
from squall_scheduler.state import PoolId
from squall_service.clock import Clock

REASON = "it lies in its queue, and the queue has forgotten it"


class Forgotten:
    """Of one shard: which pools' queues hold more than their consumers know, and since when."""

    def __init__(self, bus: Bus, clock: Clock, tail: ShardTail, repairs: CallRepairs) -> None:
        self._bus = bus
        self._clock = clock
        self._tail = tail
        self._repairs = repairs
        self._region = bus.topology.region
        self._work = subjects.work_stream(self._region, tail.shard)
        self._since: dict[str, float] = {}

    async def look(self, pool: str, consumer: ConsumerInfo) -> None:
        """Put back what is forgotten; cheap while the consumer knows as many inputs as are open."""
        known = consumer.pending + consumer.ack_pending
        suspects = await self._delivered(pool, consumer) if self._tail.open.count(pool) > known else []
        if len(suspects) <= consumer.ack_pending:
            self._since.pop(pool, None)
            return
        now = self._clock.now()
        if now - self._since.setdefault(pool, now) < PATIENCE_S:
            return
        # With leases in force, only the oldest at each look: the others may be running, and would run twice.
        chosen = suspects[:1] if consumer.ack_pending else suspects
        for key in chosen:
            await self._repairs.put_back(PoolId(pool), key, REASON)

    async def _delivered(self, pool: str, consumer: ConsumerInfo) -> list[str]:
        """Open inputs in the queue that are not still to be delivered, the oldest first."""
        wanted = subjects.calls_of_pool(self._region, self._tail.shard, pool)
        queued = (await self._bus.stream_info(self._work, wanted)).subjects
        stored = await self._bus.get_many(self._work, list(queued))
        found = sorted((each.seq, pool_and_key(subject)[1]) for subject, each in stored.items())
        return [key for seq, key in found if seq <= consumer.delivered_seq and self._tail.open.has(pool, key)]
