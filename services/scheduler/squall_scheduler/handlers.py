"""Handlers: what the scheduler does when a fact arrives. Decode, fold, and have the pools it concerns looked at.

One worker looks at one pool after the other, so that each decision is made on what the one before has changed.
"""

from __future__ import annotations

import asyncio

from squall_bus import Bus, Change, Message
from squall_contracts.builds import IMAGE_IDS, ImageRecord
from squall_contracts.functions import AppRecord, FunctionRecord, PoolRecord, pool_key
from squall_contracts.nodes import ContainerClaim, ContainerStats, NodeFact
from squall_contracts.scaling import Desired, Verdict
from squall_scheduler.facts import Facts
from squall_scheduler.metrics import Metrics
from squall_scheduler.policy import sharing
from squall_scheduler.policy.claims import Create, Drain, Forget, Note, plan
from squall_scheduler.policy.eviction import evictions
from squall_scheduler.policy.placement import Placed, place
from squall_scheduler.state import Cluster, Idle, NodeId, Pool, PoolId, Wanted
from squall_scheduler.writing import Writer
from squall_service.clock import Clock

POOL_PREFIX = pool_key("")
NAME_PREFIX = "name."
"""Keys of the bucket `apps` that point from a name to an app."""
MOST_BEFORE = 32
"""Pools that wait for room and are served first; more would make every decision slow."""


def seeker(pool: Pool, cluster: Cluster) -> sharing.Seeker:
    """What the pool's next container would be. Only for a pool whose declaration is known."""
    assert pool.record is not None
    wanted = cluster.wanted(pool, first=not any(claim.live for claim in pool.claims))
    return sharing.Seeker(workspace=pool.record.workspace, wanted=wanted)


class Scheduler:
    """The facts, the pools that have to be looked at, and the worker that does it."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self.facts = Facts()
        self.metrics = Metrics()
        self._clock = clock
        self._writer = Writer(bus, self.facts, clock, self.metrics)
        self._dirty: dict[PoolId, None] = {}
        self._wake = asyncio.Event()
        self._unsettled: set[PoolId] = set()
        """Pools that wait for time to pass: for idleness, for a pause to end, for an answer."""
        self._waiting: set[PoolId] = set()
        """Pools that wait for room."""
        self._need: dict[PoolId, Desired] = {}
        """Decisions for more containers that are not carried out in full."""

    # ------------------------------------------------------------------ facts

    def on_node(self, change: Change) -> None:
        """A node's fact. Room on it is for those who wait."""
        if change.value is None:
            self.facts.machines.node_gone(NodeId(change.key))
        elif self.facts.machines.node_seen(NodeFact.decode(change.value), self._now()):
            self.look_at(*self._waiting)

    def on_claim(self, change: Change) -> None:
        """A claim moved on. Where one ended there is room."""
        pool = PoolId(change.key.rpartition(".")[0])
        if change.value is None:
            if self.facts.claim_gone(change.key, change.revision):
                self.look_at(pool, *self._waiting)
            return
        claim = ContainerClaim.decode(change.value)
        if self.facts.claim_changed(claim, change.revision, self._now()):
            if claim.image_lost:
                self._writer.ask_for_image(pool)
            self.look_at(pool)

    def on_desired(self, change: Change) -> None:
        """The autoscaler decided."""
        pool = PoolId(change.key)
        desired = None if change.value is None else Desired.decode(change.value)
        old = self.facts.desired_changed(pool, desired)
        if desired is not None and desired.count > (old.count if old else 0):
            self._need[pool] = desired
        self.look_at(pool)

    def on_verdict(self, change: Change) -> None:
        """A verdict of ours or of another scheduler."""
        verdict = None if change.value is None else Verdict.decode(change.value)
        self.facts.verdict_changed(PoolId(change.key), verdict)

    def on_spec(self, change: Change) -> None:
        """A pool or a version of a function was declared."""
        if change.key.startswith(POOL_PREFIX):
            pool = PoolId(change.key[len(POOL_PREFIX) :])
            self.facts.pool_declared(pool, None if change.value is None else PoolRecord.decode(change.value))
            self.look_at(pool)
            return
        record = None if change.value is None else FunctionRecord.decode(change.value)
        self.facts.declared.function_declared(change.key, record)
        self.look_at(*self.facts.declared.pools_of(function=change.key))

    def on_app(self, change: Change) -> None:
        """An app was deployed, stopped or removed."""
        if change.key.startswith(NAME_PREFIX):
            return
        record = None if change.value is None else AppRecord.decode(change.value)
        self.facts.declared.app_changed(change.key, record)
        self.look_at(*self.facts.declared.pools_of(app=change.key))

    def on_image(self, change: Change) -> None:
        """A build began or ended."""
        if not change.key.startswith(IMAGE_IDS):
            return
        record = None if change.value is None else ImageRecord.decode(change.value)
        self.facts.declared.image_changed(change.key, record)
        self.look_at(*self.facts.declared.pools_of(image=change.key))

    def on_stats(self, message: Message) -> None:
        """Which containers are idle; the next tick uses it."""
        self.facts.machines.stats_seen(ContainerStats.decode(message.data), self._now())

    def on_tick(self) -> None:
        """Time passed: look at what waits for that, and at what lost nodes have left behind."""
        now = self._now()
        for node in self.facts.machines.lost(now):
            self.look_at(*self.facts.machines.pools_on(node))
        self.facts.machines.drop_silent(now)
        self.look_at(*self._unsettled, *self._waiting)

    @property
    def waiting(self) -> bool:
        """Whether any pool waits for room."""
        return bool(self._waiting)

    def on_connected(self) -> None:
        """Nodes could not be heard until now: their silence means nothing yet."""
        self.facts.machines.heard_since = self._now()

    def _now(self) -> float:
        """The time, and whether it has jumped since it was asked last."""
        now = self._clock.now()
        self.facts.machines.clock_read(now, self._clock.monotonic())
        return now

    # ------------------------------------------------------------------ decisions

    def look_at(self, *pools: PoolId) -> None:
        """Have the worker compare these pools with what they should be."""
        for pool in pools:
            self._dirty[pool] = None
        if self._dirty:
            self._wake.set()

    async def work(self) -> None:
        """The worker."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._dirty:
                pool = next(iter(self._dirty))
                del self._dirty[pool]
                await self.settle(pool)

    async def settle(self, pool_id: PoolId) -> None:
        """Compare one pool with what it should be, and act."""
        now = self._now()
        pool = self.facts.pool(pool_id, now)
        actions = plan(pool, self._cluster_for(pool, now), now)
        written = await self._writer.carry_out(pool, actions, self._need.get(pool_id))
        missing = sum(action.missing for action in actions if isinstance(action, Note))
        # A pool that waits for its image, or after failed starts, must not hold room that others can use.
        no_room = any(isinstance(action, Note) and action.rejected for action in actions)
        if no_room:
            await self._make_room(self.facts.pool(pool_id, now), missing, now)
        after = self.facts.pool(pool_id, now)
        self._remember(after, no_room, written)
        if after.claims == pool.claims:
            return  # nothing came of it: who was quicker is told by the watch, and brings the pool back
        if any(isinstance(action, Forget) for action in actions):
            self.look_at(pool_id, *self._waiting)  # its ordinals, and its room, are free now
        elif not missing and any(isinstance(action, Create) for action in actions):
            self.look_at(pool_id)  # one round makes a limited number

    def _cluster_for(self, pool: Pool, now: float) -> Cluster:
        """The nodes as the pool may use them: without the room that is for others who wait."""
        cluster = self.facts.machines.cluster()
        if not self._waiting or pool.function is None or pool.record is None:
            return cluster
        held, mine = sharing.shares(self.facts.claims(), cluster), seeker(pool, cluster)
        for other_id in list(self._waiting)[:MOST_BEFORE]:
            other = self.facts.pool(other_id, now)
            if other_id == pool.id or other.function is None or other.record is None:
                continue
            if (theirs := seeker(other, cluster)).precedes(mine, held):
                match place(theirs.wanted, cluster, now):
                    case Placed(node=node, gpus=gpus):
                        cluster = cluster.with_container(node, theirs.wanted, gpus)
                    case _:
                        pass
        return cluster

    async def _make_room(self, pool: Pool, missing: int, now: float) -> None:
        """Idle containers of other pools go early for the sake of one that waits; else a busy one of those that have
        more than their share, as soon as it has finished what it runs."""
        cluster = self.facts.machines.cluster()
        for claim in self.facts.leaving():
            cluster = cluster.without_container(claim)
        mine = seeker(pool, cluster)
        if await self._drain_some(pool, missing, mine.wanted, cluster, self.facts.idle(now), now):
            return
        claims = self.facts.claims()
        busy = self.facts.machines.busy(claims, now)
        candidates = sharing.may_give_way(mine, claims, sharing.shares(claims, cluster), cluster)
        candidates = [each for each in candidates if each.claim.message.container in busy]
        await self._drain_some(pool, 1, mine.wanted, cluster, candidates, now)

    async def _drain_some(
        self, pool: Pool, number: int, wanted: Wanted, cluster: Cluster, candidates: list[Idle], now: float
    ) -> bool:
        spare = {PoolId(each.claim.message.pool): 0 for each in candidates}
        spare = {other: self.facts.spare(other) for other in spare}
        victims = evictions(wanted, number, cluster, candidates, spare, now)
        for victim in victims:
            other = self.facts.pool(PoolId(victim.claim.message.pool), now)
            drain = Drain(claim=victim.claim, reason=f"makes room for {pool.id}")
            if await self._writer.carry_out(other, [drain], None):
                self.facts.evict(other.id, now)
        return bool(victims)

    def _remember(self, pool: Pool, no_room: bool, written: bool) -> None:
        """Why the pool has to be looked at again, if it has."""
        live = sum(claim.live for claim in pool.claims)
        wanted = pool.desired.count if pool.desired else 0
        if live >= wanted:
            self._need.pop(pool.id, None)
        self._in(self._waiting, pool.id, no_room)
        unsettled = not written or live != wanted or any(claim.proposed for claim in pool.claims)
        self._in(self._unsettled, pool.id, unsettled and bool(pool.claims or wanted))

    @staticmethod
    def _in(pools: set[PoolId], pool: PoolId, member: bool) -> None:
        if member:
            pools.add(pool)
        else:
            pools.discard(pool)
