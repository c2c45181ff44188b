"""Writing: carries out what the policies decided, by compare-and-set. Decides nothing.

Several schedulers may decide the same at once. Each write names the revision that the decision was made from, so the
first one wins; the loser learns the winner's value from its watch and decides again.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from squall.ids import new_id
from squall_bus import Bus, BusError, WrongRevision
from squall_contracts import spans, subjects
from squall_contracts.builds import BuildImage
from squall_contracts.calls import SpanVector
from squall_contracts.nodes import CONTAINERS, ClaimState, ContainerClaim
from squall_contracts.scaling import VERDICTS, Desired, Verdict
from squall_scheduler.facts import Facts
from squall_scheduler.metrics import Metrics
from squall_scheduler.policy.claims import Action, Create, Drain, Forget, Note
from squall_scheduler.state import Claim, Pool, PoolId
from squall_service.clock import Clock
from squall_service.failpoints import failpoint
from squall_service.telemetry import log

RESTATE_S = 5.0
"""A verdict that only words itself differently is not written again sooner."""


class Writer:
    """The bucket of claims and the bucket of verdicts, as far as the scheduler writes them."""

    def __init__(self, bus: Bus, facts: Facts, clock: Clock, metrics: Metrics) -> None:
        self._bus = bus
        self._claims = bus.kv(CONTAINERS)
        self._verdicts = bus.kv(VERDICTS)
        self._facts = facts
        self._clock = clock
        self._metrics = metrics

    async def carry_out(self, pool: Pool, actions: list[Action], need: Desired | None) -> bool:
        """All of them at once. False if one did not get through and the pool must be looked at again."""
        began = self._clock.now()
        outcomes = await asyncio.gather(*(self._one(pool, action, need, began) for action in actions))
        return all(outcomes)

    async def _one(self, pool: Pool, action: Action, need: Desired | None, began: float) -> bool:
        try:
            match action:
                case Create():
                    await self._create(pool, action, need, began)
                case Drain():
                    await self._drain(action)
                case Forget():
                    await self._forget(action)
                case Note():
                    await self._note(pool, action)
        except WrongRevision:
            self._metrics.lost_races += 1
            log.debug("claim_changed_meanwhile", pool=pool.id, action=type(action).__name__)
            return True  # the newer value comes by the watch, and brings the pool back
        except BusError as error:
            log.warning("claim_not_written", pool=pool.id, action=type(action).__name__, reason=repr(error))
            return False
        return True

    async def _create(self, pool: Pool, action: Create, need: Desired | None, began: float) -> None:
        claim = self._claim(pool, action, need, began)
        key = Claim(message=claim, revision=0).key
        revision = await self._claims.create(key, claim.encode())
        failpoint("scheduler.claimed")
        self._facts.claim_written(claim, revision, self._clock.now())
        self._metrics.claims["placed"] += 1
        log.info("container_placed", pool=pool.id, container=claim.container, node=action.node, reason=action.reason)

    def _claim(self, pool: Pool, action: Create, need: Desired | None, began: float) -> ContainerClaim:
        assert pool.record is not None
        assert pool.function is not None
        wanted = self._facts.machines.cluster().wanted(pool, first=False)
        now = self._clock.now()
        first = not any(claim.live for claim in pool.claims)
        return ContainerClaim(
            pool=pool.id,
            ordinal=action.ordinal,
            container=new_id("co"),
            node=action.node,
            function_id=pool.record.function_id,
            app_id=pool.record.app_id,
            workspace=pool.record.workspace,
            state=ClaimState.PROPOSED,
            created_at=now,
            updated_at=now,
            decision=pool.desired.decision if pool.desired else "",
            gpus=action.gpus,
            cpu=wanted.cpu_milli / 1000,
            memory_mib=wanted.memory_mib,
            cold_call=need.cold_call if need is not None and first else "",
            spans=control_spans(need, began, now),
            killed_before=pool.killed_before,
        )

    async def _drain(self, action: Drain) -> None:
        message = replace(
            action.claim.message, state=ClaimState.DRAINING, reason=action.reason, updated_at=self._clock.now()
        )
        revision = await self._claims.update(action.claim.key, message.encode(), action.claim.revision)
        self._facts.claim_written(message, revision, self._clock.now())
        self._metrics.claims["drained"] += 1
        log.info("container_draining", pool=message.pool, container=message.container, reason=action.reason)

    async def _forget(self, action: Forget) -> None:
        claim = action.claim
        await self._claims.delete(claim.key, revision=claim.revision)
        if claim.proposed:
            self._facts.refused(PoolId(claim.message.pool), claim.node, "does not answer", self._clock.now())
        self._facts.claim_forgotten(claim)
        self._metrics.claims["forgotten"] += 1
        log.info("claim_forgotten", pool=claim.message.pool, container=claim.message.container, reason=action.reason)

    def ask_for_image(self, pool: PoolId) -> None:
        """Have the pool's image looked for, and built again if it is lost. A request that gets lost is repeated: the
        next start fails too."""
        function = self._facts.declared.function(pool)
        if function is None:
            return
        image = function.spec.image
        command = BuildImage(
            image=image.id, spec=image, requested_at=self._clock.now(), workspace=function.workspace, lost=True
        )
        self._bus.send(subjects.build(self._bus.topology.region, image.id), command.encode())
        log.warning("image_lost", image=image.id, pool=pool)

    async def _note(self, pool: Pool, note: Note) -> None:
        old = pool.verdict
        if not note.missing:
            if old is not None:
                self._facts.verdict_changed(pool.id, None)
                await self._verdicts.delete(pool.id)
            return
        now = self._clock.now()
        if old is not None and not tells_more(note, old, now):
            return
        verdict = Verdict(
            pool=pool.id,
            at=now,
            missing=note.missing,
            rejected={str(node): reason for node, reason in note.rejected.items()},
            message=note.message,
            retry_at=note.retry_at,
            failures=note.failures,
            user_error=note.user_error,
            killed=note.killed,
        )
        self._facts.verdict_changed(pool.id, verdict)
        await self._verdicts.put(pool.id, verdict.encode())
        log.info("containers_waiting", pool=pool.id, missing=note.missing, message=note.message)


def tells_more(note: Note, old: Verdict, now: float) -> bool:
    """Whether a note is news to somebody who has read the stored verdict."""
    if note.retry_at or old.retry_at:
        # Its words count down; the time to which they do is the fact.
        return (note.retry_at, note.missing) != (old.retry_at, old.missing)
    if note.message == old.message:
        return note.missing != old.missing and now - old.at >= RESTATE_S
    return now - old.at >= RESTATE_S or old.message == "" or set(note.rejected) != set(old.rejected)


def control_spans(need: Desired | None, began: float, now: float) -> SpanVector:
    """The rows of the control plane: the decision, if this container follows from one, and the placement.

    Placement begins where the decision was made, so that waiting for room is part of it; a replacement of a lost
    container follows from no decision, and begins when its absence was noticed."""
    rows: SpanVector = []
    placed_from = began
    if need is not None:
        placed_from = need.decided_at
        started_ns = need.started_ns or nanoseconds(need.decided_at)
        rows.append(
            spans.row(
                spans.AUTOSCALER_DECIDE,
                "",
                "autoscaler",
                started_ns,
                nanoseconds(need.decided_at),
                decision=need.decision,
                reason=need.reason,
                desired=need.count,
            )
        )
    rows.append(spans.row(spans.SCHEDULER_PLACE, "", "scheduler", nanoseconds(placed_from), nanoseconds(now)))
    return rows


def nanoseconds(at: float) -> int:
    """Unix seconds as whole nanoseconds."""
    return int(at * 1_000_000_000)
