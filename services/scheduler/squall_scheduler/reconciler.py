"""Reconciler: of one shard. Sees to it that every accepted input ends in a result.

Owns three repairs: inputs past their deadline get the result `expired`; inputs that are in no queue are put back;
inputs that came back into WORK although they have ended are taken out. Steady state costs little: a look at the oldest
input of each pool every second, and a few requests every lease.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from squall_bus import Bus, BusError, BusUnavailable, ConsumerInfo, ConsumerSpec, NotFound, StreamInfo
from squall_contracts import subjects
from squall_scheduler.call_repairs import CallRepairs, Case
from squall_scheduler.facts import Facts
from squall_scheduler.forgotten import Forgotten
from squall_scheduler.policy.reconciling import LEASE_S
from squall_scheduler.shard_tail import ShardTail, keys_of
from squall_scheduler.state import PoolId
from squall_scheduler.takeover import Takeover
from squall_service.clock import Clock
from squall_service.telemetry import log

LOOKED_AT_ONCE = 256
DUE_AT_ONCE = 4096
POOLS_AT_ONCE = 8
REFILLED_LAG = 100
"""A queue that is so little behind the journal has taken over what was there when it was made."""
REFILL_S = 10.0
"""For so long a new queue is waited for to be level with its journal; under load it may always be a little behind."""
MARGIN = 8
"""Inputs that are looked at beyond those known to be delivered."""
AWAY_S = 20.0
"""A queue lies on one server of a cluster. After so long without it the queue is made again on another server: one that
is restarted is back sooner, and whoever ran something of that queue has been stale for 12 s."""
SYNC_EVERY_S = 900.0
"""A message that was missed without a gap to show for it is found after this."""
SETTLING_S = (10.0, 30.0)
"""After a reconnect the streams are listed again at these distances: gateways repeat what the server did not
acknowledge, and a server that has just recovered may not have answered for everything at the first listing."""


class Reconciler:
    """One shard, as long as its lease is held."""

    def __init__(self, bus: Bus, facts: Facts, clock: Clock, shard: int, counts: Counter[str]) -> None:
        self.tail = ShardTail(bus, shard)
        self.repairs = CallRepairs(bus, facts, clock, self.tail, counts)
        self._bus = bus
        self._clock = clock
        self._region = bus.topology.region
        self._shard = shard
        self._work = subjects.work_stream(self._region, shard)
        self._canaries = subjects.canaries(self._region)
        self._journal = subjects.journal_stream(self._region, shard)
        self._clustered = any(spec.replicas > 1 for spec in bus.topology.streams)
        self._next_round = 0.0
        self._next_sync = 0.0
        self._settling: list[float] = []
        self._takeover = Takeover(bus, self.tail)
        self._forgotten = Forgotten(bus, clock, self.tail, self.repairs)
        self._watch_takeover_until = 0.0
        self._refilling = False
        """WORK was made again, and takes over everything from the journal, also what has ended."""
        self._refill_until = 0.0
        self._away_since: float | None = None
        """The journal answers, on the servers that are left, and WORK does not."""
        self._surplus: set[str] = set()
        """Pools whose queue held more than their open inputs in the last round."""

    async def tick(self) -> None:
        """Once a second. A bus that does not answer is asked again at the next tick."""
        try:
            try:
                await self._tick(self._clock.monotonic())
                self._away_since = None
            except BusUnavailable:
                await self._leave_lost_server()
                raise
            except NotFound:
                self._away_since = None
                # Everything else asks the queue too, and would fail at every tick before it came to make it again.
                await self._work_stream()
                raise
        except BusError as error:
            log.warning("shard_not_reconciled", shard=self._shard, reason=repr(error))

    async def _tick(self, now: float) -> None:
        if self.tail.behind or now >= self._next_sync:
            await self.tail.sync()
            self._next_sync = now + (self._settling.pop(0) if self._settling else SYNC_EVERY_S)
            self._next_round = 0.0
            await self.take_out_ended()
        if now < self._watch_takeover_until:
            await self._check_takeover(now)
        await self.expire_due()
        if now >= self._next_round:
            self._next_round = now + LEASE_S
            await self.look_around()

    def on_connected(self) -> None:
        """The server may have been restarted: WORK may hold what has ended, and we have not heard everything."""
        self.tail.behind = True
        self._settling = list(SETTLING_S)
        self._watch_takeover_until = self._clock.monotonic() + SETTLING_S[-1]

    async def _check_takeover(self, now: float) -> None:
        if not await self._takeover.check(await self._bus.stream_info(self._work), now):
            self._watch_takeover_until = now + SETTLING_S[0]  # until it has been seen to go on

    # ------------------------------------------------------------------ deadlines

    async def expire_due(self) -> None:
        """Inputs whose deadline has passed."""
        for pool, keys in list(self.tail.open.due(self._clock.now(), DUE_AT_ONCE)):
            waiting = self.repairs.not_postponed(keys)
            for start in range(0, len(waiting), LOOKED_AT_ONCE):
                consumer = await self._bus.consumer_info(self._work, pool)
                await self._examine(pool, waiting[start : start + LOOKED_AT_ONCE], consumer)

    # ------------------------------------------------------------------ every lease

    async def look_around(self) -> None:
        """Compare the queues with what should be in them."""
        accepted = await self.tail.check_progress()
        self.repairs.forget_past()
        work = await self._work_stream()
        if work is None:
            self._next_round = 0.0
            return
        now = self._clock.monotonic()
        if not await self._takeover.check(work, now):
            self._watch_takeover_until = now + SETTLING_S[0]
        lag = sum(source.lag for source in work.sources.values())
        if self._refilling and not await self._refilled(work, lag, now):
            return
        if work.others <= 0 and not len(self.tail.open):
            self._surplus.clear()
            return
        consumers = {consumer.name: consumer for consumer in await self._bus.list_consumers(self._work)}
        pools = self.tail.open.pools()
        for start in range(0, len(pools), POOLS_AT_ONCE):
            some = pools[start : start + POOLS_AT_ONCE]
            await asyncio.gather(*(self._look_at(pool, consumers.get(pool), accepted - lag) for pool in some))
        if self._surplus_lasts(consumers):
            await self.take_out_ended()

    async def _refilled(self, work: StreamInfo, lag: int, now: float) -> bool:
        """Once a new WORK has taken over the journal, what has ended is taken out of it again.

        Before that it gets no consumers: agents take a first delivery for something that nobody has run yet."""
        self._next_round = 0.0
        over = now > self._refill_until
        if not over and (not work.last_seq or lag):
            return False
        if lag >= REFILLED_LAG:
            return False
        self._refilling = False
        await self.take_out_ended()
        return True

    async def _work_stream(self) -> StreamInfo | None:
        """WORK; when it was lost it is made again, and fills itself from the journal."""
        try:
            return await self._bus.stream_info(self._work, self._canaries)
        except NotFound:
            log.error("queue_lost", stream=self._work, open=len(self.tail.open))
            await self._bus.ensure_stream(self._work)
            self._refilling = True
            self._refill_until = self._clock.monotonic() + REFILL_S
            return None

    async def _leave_lost_server(self) -> None:
        """Give up a WORK whose server stays away. The next tick finds it lost, and makes it again on another one."""
        if not self._clustered:
            return
        since, self._away_since = self._away_since, None
        await self._bus.stream_info(self._journal)  # or else most servers are away, and nothing can be done
        try:
            await self._bus.stream_info(self._work)
        except BusUnavailable:
            now = self._clock.monotonic()
            self._away_since = now if since is None else since
            if now >= self._away_since + AWAY_S:
                self._away_since = None  # the new one has its own time
                log.error("queue_server_lost", stream=self._work, open=len(self.tail.open))
                await self._bus.drop_stream(self._work)

    async def _make_consumer(self, pool: str) -> ConsumerInfo | None:
        """A pool's consumer is lost with WORK, and nothing is delivered without it."""
        wanted = subjects.calls_of_pool(self._region, self._shard, pool)
        await self._bus.ensure_consumer(self._work, ConsumerSpec(name=pool, filter_subject=wanted))
        log.warning("consumer_made_again", stream=self._work, pool=pool)
        return await self._bus.consumer_info(self._work, pool)

    async def _look_at(self, pool: str, known: ConsumerInfo | None, sourced_seq: int) -> None:
        """The inputs of a pool that may have dropped out of its queue. Behind `sourced_seq` they may be on their way.

        Only a delivered one can drop out, and deliveries follow the order of the journal: it is among the oldest. If
        the queue as a whole is short, it has lost more than that, and all of them are looked at."""
        consumer = known or await self._make_consumer(pool)
        if consumer is None:
            return
        calls = self.tail.open
        short = calls.count(pool) - consumer.pending - consumer.ack_pending
        suspects = consumer.ack_pending + MARGIN
        if short > suspects:
            missing = await self._missing(pool)
        else:
            missing = calls.oldest(pool, suspects + max(0, short))
        missing = [key for key in missing if calls.seq(pool, key) <= sourced_seq]
        for start in range(0, len(missing), LOOKED_AT_ONCE):
            await self._examine(pool, missing[start : start + LOOKED_AT_ONCE], consumer)
        await self._forgotten.look(pool, consumer)

    async def _missing(self, pool: str) -> list[str]:
        """Open inputs of a pool that are not in its queue, by comparing lists."""
        wanted = subjects.calls_of_pool(self._region, self._shard, pool)
        queued = keys_of((await self._bus.stream_info(self._work, wanted)).subjects)
        return [key for key in self.tail.open.all(pool) if key not in queued]

    async def _examine(self, pool: str, keys: list[str], consumer: ConsumerInfo | None) -> None:
        delivered_seq = consumer.delivered_seq if consumer else 0
        await self.repairs.examine(Case(pool=PoolId(pool), keys=tuple(keys), delivered_seq=delivered_seq))

    # ------------------------------------------------------------------ what came back

    def _surplus_lasts(self, consumers: dict[str, ConsumerInfo]) -> bool:
        """Whether a queue holds more than is open, now and a lease ago: then some of it has ended.

        As much as agents have leased may be recorded and just not acknowledged yet."""
        before = self._surplus
        self._surplus = {name for name, c in consumers.items() if c.pending > self.tail.open.count(name)}
        return bool(before & self._surplus)

    async def take_out_ended(self) -> None:
        """Remove from WORK what has a result: it would be delivered for nothing, and count as backlog."""
        work = await self._bus.stream_info(self._work, f"calls.{self._region}.>")
        ended = [s for s in work.subjects if not self.tail.open.has(*_pool_and_key(s))]
        for start in range(0, len(ended), LOOKED_AT_ONCE):
            await self.repairs.take_out(ended[start : start + LOOKED_AT_ONCE])


def _pool_and_key(subject: str) -> tuple[str, str]:
    _, _, _, pool, key = subject.split(".", 4)
    return pool, key
