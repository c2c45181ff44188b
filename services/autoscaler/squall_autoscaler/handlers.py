"""Handlers: what the autoscaler does when a fact arrives, when a pool's first call arrives, and at every tick."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable

from squall.ids import new_id
from squall.spec import to_wire
from squall_autoscaler.facts import Facts
from squall_autoscaler.metrics import Metrics
from squall_autoscaler.policy.scaling import decide
from squall_autoscaler.policy.windows import History
from squall_autoscaler.retiring import Retiring
from squall_autoscaler.sampling import Sampler
from squall_autoscaler.state import Decision, Sample
from squall_bus import Bus, BusError, Change, Message, WrongRevision
from squall_contracts.functions import AppRecord, FunctionRecord, PoolRecord, pool_key
from squall_contracts.nodes import ContainerClaim, ContainerStats
from squall_contracts.scaling import DESIRED, Desired, Verdict, WebDemand
from squall_service.clock import Clock
from squall_service.failpoints import failpoint
from squall_service.telemetry import log

POOL_PREFIX = pool_key("")
ATTENTION_S = 2.0
"""A function that calls others does so soon after it has started."""
ASKED_SINGLY = 16
"""More pools than that are asked for with one request for all of them."""
NAME_PREFIX = "name."
"""Keys of the bucket `apps` that point from a name to an app."""


class Autoscaler:
    """The facts, what is remembered of each pool, and the decisions."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self.facts = Facts()
        self.metrics = Metrics()
        self.sampler = Sampler(bus)
        self.leading = False
        """Only the leader takes decisions other than 0 -> 1."""
        self.hot: dict[str, float] = {}
        """Pools that are looked at five times a second, and until when: those with inputs that no container runs, and
        those where something has just happened."""
        self.stirred = asyncio.Event()
        """A pool became hot."""
        self.changed: set[str] = set()
        """Pools whose declaration, decision or containers changed since the waker looked."""
        self.news = asyncio.Event()
        self._desired = bus.kv(DESIRED)
        self._clock = clock
        self._retiring = Retiring(bus, self.facts, self.sampler)
        self._histories: dict[str, History] = {}
        self._lasting: dict[str, float] = {}
        """Of pools at zero whose inputs take long: `Work.lasting_at`."""
        self._resting: set[str] = set()
        """Pools at zero about which nothing has changed since they were looked at: most of a large installation."""

    # ------------------------------------------------------------------ facts

    def on_spec(self, change: Change) -> None:
        """A pool or a version of a function was declared."""
        if change.key.startswith(POOL_PREFIX):
            pool = change.key[len(POOL_PREFIX) :]
            self.facts.pool_declared(pool, None if change.value is None else PoolRecord.decode(change.value))
            self._mark(pool)
            self._stir(pool)
            return
        self.facts.function_declared(change.key, None if change.value is None else FunctionRecord.decode(change.value))

    def on_app(self, change: Change) -> None:
        """An app was deployed, stopped or removed."""
        if not change.key.startswith(NAME_PREFIX):
            self.facts.app_changed(change.key, None if change.value is None else AppRecord.decode(change.value))
            for pool in self.facts.pools_of(change.key):
                self._stir(pool)

    def on_claim(self, change: Change) -> None:
        """A container came, moved on or went."""
        claim = None if change.value is None else ContainerClaim.decode(change.value)
        self.facts.claim_changed(change.key, claim)
        self._resting.discard(change.key.rpartition(".")[0])

    def on_desired(self, change: Change) -> None:
        """A decision of ours or of another autoscaler."""
        desired = None if change.value is None else Desired.decode(change.value)
        before = self.facts.decision(change.key).count
        self.facts.decided(change.key, desired, change.revision)
        if desired is not None and desired.count > before == 0:
            self._stir(change.key)
        self._mark(change.key)

    def on_verdict(self, change: Change) -> None:
        """The scheduler could not place, or starts fail."""
        self.facts.verdict_changed(change.key, None if change.value is None else Verdict.decode(change.value))

    def on_stats(self, message: Message) -> None:
        """What a node's containers do. Where the last free one was taken, the next input will wait."""
        for pool in self.facts.stats_seen(ContainerStats.decode(message.data), self._clock.now()):
            self._stir(pool)

    def on_demand(self, message: Message) -> str:
        """What a gateway has of web requests. Returns the pool if its first container is wanted."""
        demand = WebDemand.decode(message.data)
        self.facts.demand_seen(demand, self._clock.now())
        if demand.held:
            self._stir(demand.pool)
        self._resting.discard(demand.pool)
        return demand.pool if demand.held and self.at_zero(demand.pool) else ""

    def _mark(self, pool: str) -> None:
        self._resting.discard(pool)
        self.changed.add(pool)
        self.news.set()

    def _stir(self, pool: str) -> None:
        self._resting.discard(pool)
        if self.leading:
            self.hot[pool] = self._clock.now() + ATTENTION_S
            self.stirred.set()

    # ------------------------------------------------------------------ 0 -> 1

    def at_zero(self, pool: str) -> bool:
        """Whether the pool's first call has to be heard."""
        return self.facts.record(pool) is not None and self.facts.decision(pool).count == 0

    async def do_wake(self, pool: str, call: str) -> None:
        """The first call of a pool at zero was stored."""
        started = self._clock.now()
        if self.at_zero(pool):
            decision = Decision(count=1, reason="first call", unserved=True)
            await self._store(pool, decision, Sample(at=started, inputs=1), cold_call=call)

    async def do_wake_for_web(self, pool: str) -> None:
        """A web request waits for a pool at zero."""
        now = self._clock.now()
        if self.at_zero(pool) and (web := self.facts.web(pool, now)):
            await self._store(
                pool, Decision(count=1, reason="web request", unserved=True), Sample(at=now, inputs=0, web=web)
            )

    async def check_once(self, pool: str) -> None:
        """Whether anything came before the pool was listened to."""
        started = self._clock.now()
        await self.do_wake_for_web(pool)
        inputs = await self._real(pool, await self.sampler.inputs_of(pool))
        if inputs and self.at_zero(pool):
            decision = Decision(count=1, reason="inputs wait", unserved=True)
            await self._store(pool, decision, Sample(at=started, inputs=inputs))

    # ------------------------------------------------------------------ the leader's decisions

    async def tick(self, pools: Iterable[str] | None = None) -> None:
        """Sample, decide, store: for these pools, or for all."""
        wanted = [] if pools is None else list(pools)
        if not 0 < len(wanted) <= ASKED_SINGLY:
            # Without pools there is nobody to scale: asking every queue is 9 in 10 of an idle bus's requests.
            inputs = await self.sampler.all_inputs() if self.facts.pools() else {}
            self.metrics.failed_samples += inputs is None
            resting = self._resting if inputs is not None else set()
            awake = [pool for pool in self.facts.pools() if pool not in resting or (inputs and pool in inputs)]
            samples = {pool: None if inputs is None else inputs.get(pool, 0) for pool in awake}
        else:
            counts = await asyncio.gather(*(self.sampler.inputs_of(pool) for pool in wanted))
            samples = dict(zip(wanted, counts, strict=True))
        await asyncio.gather(*(self.scale(pool, there) for pool, there in samples.items()))
        if pools is None:
            for pool in (self._histories.keys() | self._lasting.keys()) - set(self.facts.pools()):
                self._histories.pop(pool, None)
                self._lasting.pop(pool, None)
            self._resting &= set(self.facts.pools())

    async def scale(self, pool: str, inputs: int | None) -> None:
        """Decide on one pool."""
        now = self._clock.now()
        situation = self.facts.situation(pool)
        if situation is None:
            self.hot.pop(pool, None)
            return
        real = await self._real(pool, inputs)
        sample = self.facts.sample(pool, real, now)
        history = self._histories.get(pool)
        if history is None:
            history = self._histories[pool] = History(now, self._lasting.pop(pool, -math.inf))
        decision = decide(sample, history, situation, now)
        if decision.unserved:
            self.hot[pool] = now + ATTENTION_S
        elif self.hot.get(pool, 0.0) <= now:
            self.hot.pop(pool, None)
        if decision.count not in (situation.desired, self.facts.decision(pool).count):
            await self._store(pool, decision, sample)
        if situation.stopped or situation.retired:
            await self._retiring.saw(pool, inputs, now)
        elif decision.count == 0 and inputs == 0 and not sample.web and not self.facts.claims(pool):
            self._resting.add(pool)
            self._forget(pool, history)

    def _forget(self, pool: str, history: History) -> None:
        """A pool at zero: all but whether its inputs take long."""
        self._histories.pop(pool, None)
        if history.work.lasting(self._clock.now()):
            self._lasting[pool] = history.work.lasting_at

    async def _real(self, pool: str, inputs: int | None) -> int | None:
        """Inputs of a pool at zero count only if one of them has no result."""
        record = self.facts.record(pool)
        if not inputs or record is None or self.facts.decision(pool).count or self.facts.live(pool):
            return inputs
        try:
            return inputs if await self.sampler.has_unfinished(pool, record.workspace) else 0
        except BusError as error:
            log.warning("queue_not_probed", pool=pool, reason=repr(error))
            return None

    async def _store(self, pool: str, decision: Decision, sample: Sample, cold_call: str = "") -> None:
        known = self.facts.decision(pool)
        desired = Desired(
            pool=pool,
            count=decision.count,
            reason=decision.reason,
            decision=new_id("de"),
            decided_at=self._clock.now(),
            inputs=to_wire(sample),
            started_ns=int(sample.at * 1_000_000_000),
            cold_call=cold_call,
        )
        try:
            if known.revision:
                revision = await self._desired.update(pool, desired.encode(), known.revision)
            else:
                revision = await self._desired.create(pool, desired.encode())
        except WrongRevision:
            self.metrics.lost_races += 1
            return  # somebody else decided; the watch brings what
        except BusError as error:
            log.warning("decision_not_stored", pool=pool, reason=repr(error))
            return
        failpoint("autoscaler.desired")
        self.facts.decided(pool, desired, revision)
        self._mark(pool)
        self.metrics.count(known.count, desired.count, woken=bool(cold_call))
        log.info("containers_desired", pool=pool, count=desired.count, before=known.count, reason=desired.reason)
