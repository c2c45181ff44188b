"""Facts: folds what the bus says about pools into what the policy decides on. No I/O, no clock, decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from squall.spec import ScalingPolicy
from squall_autoscaler.state import Sample, Situation
from squall_contracts.functions import AppRecord, FunctionRecord, PoolRecord
from squall_contracts.nodes import ClaimState, ContainerClaim, ContainerStats
from squall_contracts.scaling import Desired, Verdict, WebDemand

STATS_TTL_S = 3.5
"""Three missed messages: what a node said before that no longer counts."""
DEMAND_TTL_S = 2.5
"""Gateways tell it every half second; one that has died wants nothing."""
STARTING = frozenset({ClaimState.PROPOSED, ClaimState.STARTING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """The stored decision and its revision; revision 0 = there is none."""

    desired: Desired | None = None
    revision: int = 0

    @property
    def count(self) -> int:
        return self.desired.count if self.desired else 0


@dataclass(slots=True)
class NodeStats:
    """The last message of one node, folded by pool."""

    seen_at: float
    running: dict[str, int] = field(default_factory=dict)
    free: dict[str, int] = field(default_factory=dict)
    finished: Mapping[str, int] = field(default_factory=dict)


class Facts:
    """Everything the autoscaler has been told."""

    def __init__(self) -> None:
        self._records: dict[str, PoolRecord] = {}
        self._functions: dict[str, FunctionRecord] = {}
        self._apps: dict[str, AppRecord] = {}
        self._claims: dict[str, dict[str, ContainerClaim]] = {}
        self._decided: dict[str, Decided] = {}
        self._failing: set[str] = set()
        self._no_room: set[str] = set()
        self._finished: dict[str, float] = {}
        """By pool: inputs that have ended since we listen."""
        self._stats: dict[str, NodeStats] = {}
        self._demand: dict[str, dict[str, tuple[float, int]]] = {}
        """Web requests by pool and gateway, each with the time at which it was told."""

    # ------------------------------------------------------------------ folds

    def pool_declared(self, pool: str, record: PoolRecord | None) -> None:
        """The gateway made a pool, or it was cleaned up."""
        self._records.pop(pool, None)
        if record is not None:
            self._records[pool] = record
        else:
            self._finished.pop(pool, None)

    def function_declared(self, function_id: str, record: FunctionRecord | None) -> None:
        """A version of a function exists, or no longer."""
        self._functions.pop(function_id, None)
        if record is not None:
            self._functions[function_id] = record

    def app_changed(self, app_id: str, record: AppRecord | None) -> None:
        """An app was deployed, stopped or removed."""
        self._apps.pop(app_id, None)
        if record is not None:
            self._apps[app_id] = record

    def claim_changed(self, key: str, claim: ContainerClaim | None) -> None:
        """A container came, moved on or went."""
        pool = key.rpartition(".")[0]
        if claim is not None:
            self._claims.setdefault(pool, {})[key] = claim
        elif (claims := self._claims.get(pool)) is not None:
            claims.pop(key, None)
            if not claims:
                del self._claims[pool]

    def decided(self, pool: str, desired: Desired | None, revision: int) -> None:
        """A stored decision, ours or another autoscaler's; older news than what is known is dropped."""
        if revision >= self.decision(pool).revision:
            # A deleted key keeps no revision: it is made anew, not changed.
            self._decided[pool] = Decided(desired=desired, revision=revision if desired else 0)

    def verdict_changed(self, pool: str, verdict: Verdict | None) -> None:
        """Whether the pool's containers fail to start, or find no room."""
        for pools, holds in (
            (self._failing, verdict is not None and verdict.failures > 0),
            (self._no_room, verdict is not None and len(verdict.rejected) > 0),
        ):
            if holds:
                pools.add(pool)
            else:
                pools.discard(pool)

    def stats_seen(self, stats: ContainerStats, now: float) -> list[str]:
        """What one node's containers do; rows: container, pool, running, slots, idle since, state. Returns the pools
        that run more there than before and have no free place left."""
        seen = NodeStats(seen_at=now, finished=stats.finished)
        if (before := self._stats.get(stats.node)) is not None:
            for pool, count in stats.finished.items():
                # An agent that was started again counts from 0.
                more = count - before.finished.get(pool, 0)
                self._finished[pool] = self._finished.get(pool, 0.0) + (more if more >= 0 else count)
        for _, pool, running, slots, *_ in stats.containers:
            seen.running[pool] = seen.running.get(pool, 0) + int(running)
            seen.free[pool] = seen.free.get(pool, 0) + int(slots) - int(running)
        self._stats[stats.node] = seen
        running = before.running if before is not None else {}
        return [pool for pool, free in seen.free.items() if free <= 0 and seen.running[pool] > running.get(pool, 0)]

    def demand_seen(self, demand: WebDemand, now: float) -> None:
        """What one gateway has for a pool."""
        gateways = self._demand.setdefault(demand.pool, {})
        gateways[demand.gateway] = (now, demand.held + demand.running)
        if not demand.held and not demand.running:
            del gateways[demand.gateway]
            if not gateways:
                del self._demand[demand.pool]

    # ------------------------------------------------------------------ views

    def web(self, pool: str, now: float) -> int:
        """Web requests that gateways hold or have running."""
        gateways = self._demand.get(pool, {})
        for gateway, (seen_at, _) in list(gateways.items()):
            if now - seen_at > DEMAND_TTL_S:
                del gateways[gateway]
        return sum(count for _, count in gateways.values())

    def demanded(self) -> list[str]:
        """Pools that have web requests."""
        return list(self._demand)

    def pools(self) -> list[str]:
        """Every pool that was declared, or that still has something to take back."""
        return list(dict.fromkeys([*self._records, *self._claims, *(p for p, d in self._decided.items() if d.count)]))

    def pools_of(self, app_id: str) -> list[str]:
        """The pools of an app."""
        return [pool for pool, record in self._records.items() if record.app_id == app_id]

    def record(self, pool: str) -> PoolRecord | None:
        return self._records.get(pool)

    def function(self, pool: str) -> FunctionRecord | None:
        record = self._records.get(pool)
        function = self._functions.get(record.function_id) if record else None
        return record.scaled(function) if record and function else None

    def decision(self, pool: str) -> Decided:
        return self._decided.get(pool) or Decided()

    def desired(self) -> int:
        """Containers wanted in all pools."""
        return sum(decided.count for decided in self._decided.values())

    def live(self, pool: str) -> int:
        """Containers that there are or will be."""
        ended = (ClaimState.REFUSED, ClaimState.FAILED, ClaimState.DRAINING)
        return sum(claim.state not in ended for claim in self._claims.get(pool, {}).values())

    def claims(self, pool: str) -> int:
        """Claims in any state."""
        return len(self._claims.get(pool, {}))

    def situation(self, pool: str) -> Situation | None:
        """What the pool is; None while that is not known and nothing may be decided."""
        record, function = self._records.get(pool), self.function(pool)
        if record is None or function is None:
            return None
        app = self._apps.get(record.app_id)
        if app is None:
            return None
        stopped = app.state == "stopped"
        desired = self.decision(pool).desired
        return Situation(
            policy=ScalingPolicy() if stopped else function.spec.scaling,
            desired=self.decision(pool).count,
            stopped=stopped,
            retired=app.functions.get(function.spec.name) != function.published_id,
            failing=pool in self._failing,
            no_room=pool in self._no_room,
            woken_at=desired.decided_at if desired is not None and desired.cold_call else float("-inf"),
        )

    def sample(self, pool: str, inputs: int | None, now: float) -> Sample:
        """One look at the pool; `inputs` is what its queue says."""
        claims = self._claims.get(pool, {}).values()
        nodes = {claim.node for claim in claims if claim.state in (ClaimState.READY, ClaimState.DRAINING)}
        known = {node: stats for node in nodes if (stats := self._fresh(node, now)) is not None}
        return Sample(
            at=now,
            inputs=inputs,
            running=sum(stats.running.get(pool, 0) for stats in known.values()),
            ready=sum(claim.state == ClaimState.READY for claim in claims),
            starting=sum(claim.state in STARTING for claim in claims),
            web=self.web(pool, now),
            finished=self._finished.get(pool, 0.0) if known else None,
            heard=len(known) == len(nodes),
        )

    def _fresh(self, node: str, now: float) -> NodeStats | None:
        stats = self._stats.get(node)
        return stats if stats is not None and now - stats.seen_at <= STATS_TTL_S else None
