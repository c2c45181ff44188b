"""Facts: folds what the bus says into the view that policies decide on.

Owns the newest known value of every claim, decision and verdict, and what refusals, failed starts and evictions teach;
`machines` and `declared` hold the rest. Does no I/O and has no clock. Every fact may come twice.
"""

from __future__ import annotations

from dataclasses import replace

from squall_contracts.functions import PoolRecord
from squall_contracts.nodes import ClaimState, ContainerClaim
from squall_contracts.scaling import Desired, Verdict
from squall_scheduler.declarations import Declarations
from squall_scheduler.machines import Machines
from squall_scheduler.policy import backoff
from squall_scheduler.state import Claim, Idle, NodeId, Pool, PoolId, Refusal, Trouble

EVICTED_S = 3.0
"""Until then the autoscaler has decided anew, knowing that the evicted containers are gone."""


class Facts:
    """Everything the scheduler has been told."""

    def __init__(self) -> None:
        self.machines = Machines()
        self.declared = Declarations()
        self._claims: dict[PoolId, dict[str, Claim]] = {}
        self._desired: dict[PoolId, Desired] = {}
        self._verdicts: dict[PoolId, Verdict] = {}
        self._trouble: dict[PoolId, Trouble] = {}
        self._refusals: dict[PoolId, dict[NodeId, Refusal]] = {}
        self._evicted: dict[PoolId, tuple[str, float, int]] = {}
        """(decision, when, how many)"""
        self._claims_heard = 0
        """The newest revision of claims that the watch has told: it tells all of them in order."""

    # ------------------------------------------------------------------ views

    def pool(self, pool: PoolId, now: float) -> Pool:
        """One pool as it is known now."""
        claims = tuple(sorted(self._claims.get(pool, {}).values(), key=lambda claim: claim.message.ordinal))
        image, built = self.declared.image(pool)
        return Pool(
            id=pool,
            record=self.declared.record(pool),
            function=self.declared.function(pool),
            stopped=self.declared.stopped(pool),
            desired=self._desired.get(pool),
            evicted=self._evicted_of(pool, now),
            claims=claims,
            idle_since=self.machines.idle_since(claims, now),
            image=image,
            image_state=built.state if built else "",
            image_error=str(built.error.get("message", "")) if built else "",
            trouble=self._trouble.get(pool),
            refusals=dict(self._refusals.get(pool, {})),
            verdict=self._verdicts.get(pool),
        )

    def pools(self) -> set[PoolId]:
        """Every pool that has, or should have, containers."""
        return set(self._desired) | set(self._claims)

    def containers(self) -> int:
        """How many claims there are."""
        return sum(len(claims) for claims in self._claims.values())

    def missing(self) -> int:
        """How many containers are wanted and cannot be placed."""
        return sum(verdict.missing for verdict in self._verdicts.values())

    def has_container(self, pool: PoolId) -> bool:
        """Whether anything of the pool may be running."""
        return any(claim.holding for claim in self._claims.get(pool, {}).values())

    def waiting(self, pool: PoolId) -> str:
        """Why the pool's inputs wait; empty if nobody knows."""
        verdict = self._verdicts.get(pool)
        return verdict.message if verdict else ""

    def idle(self, now: float) -> list[Idle]:
        """Every ready container that runs nothing."""
        found = []
        for claims in self._claims.values():
            ready = tuple(claim for claim in claims.values() if claim.ready)
            since = self.machines.idle_since(ready, now)
            found += [Idle(claim=c, since=at) for c in ready if (at := since.get(c.message.container, 0.0)) > 0]
        return found

    def spare(self, pool: PoolId) -> int:
        """How many ready containers the pool can lose without going below its min_containers."""
        spec = self.declared.spec(pool)
        ready = sum(claim.ready for claim in self._claims.get(pool, {}).values())
        return ready - (spec.scaling.min_containers if spec else 0)

    def claims(self) -> list[Claim]:
        """Of all pools."""
        return [claim for claims in self._claims.values() for claim in claims.values()]

    def leaving(self) -> list[Claim]:
        """Containers that are draining: their room comes free."""
        state = ClaimState.DRAINING
        return [c for claims in self._claims.values() for c in claims.values() if c.message.state == state]

    # ------------------------------------------------------------------ claims

    def claim_written(self, message: ContainerClaim, revision: int, now: float) -> None:
        """A claim as we have written it. What the watch has told beyond that is newer, also if it is that there is no
        such claim any more: the answer to a write may come long after it (it got lost, and the write was repeated)."""
        if revision > self._claims_heard:
            self._fold(message, revision, now)

    def claim_changed(self, message: ContainerClaim, revision: int, now: float) -> bool:
        """A claim as the watch tells it. False for what was known already."""
        self._claims_heard = max(self._claims_heard, revision)
        return self._fold(message, revision, now)

    def _fold(self, message: ContainerClaim, revision: int, now: float) -> bool:
        claim = Claim(message=message, revision=revision)
        pool = PoolId(message.pool)
        old = self._claims.setdefault(pool, {}).get(claim.key)
        if old is not None and old.revision >= revision:
            return False
        if old is not None and old.node != claim.node:
            self.machines.claim_removed(old)
        self._claims[pool][claim.key] = claim
        self.machines.claim_stored(claim)
        self._learn(pool, claim, now)
        return True

    def claim_forgotten(self, claim: Claim) -> None:
        """We have deleted a claim."""
        self._remove(claim.key, claim.revision)

    def claim_gone(self, key: str, revision: int) -> bool:
        """The watch tells that a claim was deleted. False if a newer one has its place already."""
        self._claims_heard = max(self._claims_heard, revision)
        return self._remove(key, revision)

    def _remove(self, key: str, revision: int) -> bool:
        pool = PoolId(key.rpartition(".")[0])
        claims = self._claims.get(pool, {})
        old = claims.get(key)
        if old is None or old.revision > revision:
            return False
        del claims[key]
        if not claims:
            del self._claims[pool]
        self.machines.claim_removed(old)
        return True

    def refused(self, pool: PoolId, node: NodeId, reason: str, now: float) -> None:
        """A node does not want a container of the pool."""
        refusals = self._refusals.setdefault(pool, {})
        times = refusals[node].times + 1 if node in refusals else 1
        refusals[node] = Refusal(reason=reason, times=times, at=now)

    def evict(self, pool: PoolId, now: float) -> None:
        """A container of the pool makes room: the pool does not want it back until the autoscaler decides anew."""
        decision = desired.decision if (desired := self._desired.get(pool)) else ""
        self._evicted[pool] = (decision, now, self._evicted_of(pool, now) + 1)

    def _evicted_of(self, pool: PoolId, now: float) -> int:
        decision, at, number = self._evicted.get(pool, ("", 0.0, 0))
        desired = self._desired.get(pool)
        if number and (desired is None or desired.decision != decision or now - at > EVICTED_S):
            del self._evicted[pool]
            return 0
        return number

    def _learn(self, pool: PoolId, claim: Claim, now: float) -> None:
        message = claim.message
        match message.state:
            case ClaimState.REFUSED:
                self.refused(pool, claim.node, f"refused: {message.reason}", now)
            case ClaimState.FAILED:
                self._trouble[pool] = backoff.after_failure(
                    self._trouble.get(pool),
                    started_at=message.created_at,
                    now=now,
                    reason=message.reason or str(message.error.get("message", "")),
                    user_error=message.user_error,
                    killed=message.killed,
                )
            case ClaimState.READY:
                self._refusals.get(pool, {}).pop(claim.node, None)
                if (trouble := self._trouble.get(pool)) is not None:
                    self._trouble[pool] = replace(trouble, over=True)
            case _:
                pass

    # ------------------------------------------------------------------ decisions

    def desired_changed(self, pool: PoolId, desired: Desired | None) -> Desired | None:
        """The autoscaler's decision; returns the one before."""
        old = self._desired.pop(pool, None)
        if desired is not None:
            self._desired[pool] = desired
        return old

    def verdict_changed(self, pool: PoolId, verdict: Verdict | None) -> None:
        """A stored verdict. After a restart it is the only memory of how often starts of the pool have failed."""
        self._verdicts.pop(pool, None)
        if verdict is None:
            return
        self._verdicts[pool] = verdict
        if verdict.failures and pool not in self._trouble:
            reason = verdict.message.rpartition("; next try")[0]
            failed_at = verdict.retry_at - backoff.pause_s(verdict.failures)
            self._trouble[pool] = Trouble(
                failures=verdict.failures,
                failed_at=failed_at,
                reason=reason,
                user_error=verdict.user_error,
                killed=verdict.killed,
            )

    def pool_declared(self, pool: PoolId, record: PoolRecord | None) -> None:
        """The gateway made a pool, or it was cleaned up, and what was learned about it is of no use any more."""
        self.declared.pool_declared(pool, record)
        if record is None:
            self._trouble.pop(pool, None)
            self._refusals.pop(pool, None)
            self._evicted.pop(pool, None)
