"""What should change in a pool's claims: which to create, to drain, to forget, and what to tell the user who waits.

Compares the desired number with what is there. Owns no state, does no I/O; placement itself is in `placement`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from squall_scheduler.policy import backoff
from squall_scheduler.policy.placement import NoRoom, place_many
from squall_scheduler.state import Claim, Cluster, NodeId, Pool, PoolId

UNANSWERED_S = 10.0
"""A living agent answers a proposal within milliseconds; after this it is given to somebody else."""
MAX_CREATES = 64
"""New claims in one round: a round of 1,000 would hold up every other pool for a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """Propose a container."""

    pool: PoolId
    ordinal: int
    node: NodeId
    gpus: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Ask a container to stop once it is idle."""

    claim: Claim
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """Remove a claim whose container does not exist (any more)."""

    claim: Claim
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What stands in the pool's way now; `missing` 0 = nothing, an earlier verdict no longer holds."""

    pool: PoolId
    missing: int = 0
    message: str = ""
    rejected: Mapping[NodeId, str] = field(default_factory=dict)
    retry_at: float = 0.0
    failures: int = 0
    user_error: bool = False
    killed: int = 0


Action = Create | Drain | Forget | Note


def plan(pool: Pool, cluster: Cluster, now: float) -> list[Action]:
    """What should happen to the claims of one pool now; ends with one `Note` if its declaration is known."""
    actions: list[Action] = list(_forget(pool, cluster, now))
    forgotten = {action.claim.key for action in actions if isinstance(action, Forget)}
    live = [claim for claim in pool.claims if claim.live and claim.key not in forgotten]
    count = target(pool)
    if count is None:
        return actions
    if len(live) >= count:
        return [*actions, *_drain(pool, live, len(live) - count), Note(pool=pool.id)]
    return [*actions, *_create(pool, live, count - len(live), cluster, now)]


def target(pool: Pool) -> int | None:
    """How many live claims the pool should have; None while its declaration is not known."""
    if pool.stopped:
        return 0
    if pool.desired is None:
        return 0
    if pool.function is None or pool.record is None:
        return None
    limit = pool.function.spec.scaling.max_containers
    count = max(0, pool.desired.count - pool.evicted)
    return count if limit is None else min(count, limit)


# --- fewer -----------------------------------------------------------------------------------------------------------


def _forget(pool: Pool, cluster: Cluster, now: float) -> list[Forget]:
    found = []
    for claim in pool.claims:
        if not claim.holding:
            found.append(Forget(claim=claim, reason=f"{claim.message.state}: {claim.message.reason}"))
        elif cluster.lost(claim.node, now):
            found.append(Forget(claim=claim, reason=f"node {claim.node} is gone"))
        elif claim.proposed and now - claim.message.updated_at > UNANSWERED_S:
            found.append(Forget(claim=claim, reason=f"node {claim.node} does not answer"))
    return found


def _drain(pool: Pool, live: list[Claim], surplus: int) -> list[Drain]:
    """The ones whose end costs least: not started yet, then starting, then idle for longest. Never a busy one."""
    if surplus <= 0:
        return []
    candidates = [(rank, claim) for claim in live if (rank := _cost_of_ending(pool, claim)) is not None]
    candidates.sort(key=lambda candidate: (candidate[0], -candidate[1].message.ordinal))
    reason = "its app is stopped" if pool.stopped else "no longer needed"
    return [Drain(claim=claim, reason=reason) for _, claim in candidates[:surplus]]


def _cost_of_ending(pool: Pool, claim: Claim) -> tuple[int, float] | None:
    """Order of draining; None = must not be ended."""
    if claim.proposed:
        return (0, 0.0)
    if not claim.ready:
        return (1, -claim.message.created_at)
    idle_since = pool.idle_since.get(claim.message.container, 0.0)
    if idle_since > 0:
        return (2, idle_since)
    # Of a stopped app the calls are cancelled already.
    return (3, 0.0) if pool.stopped else None


# --- more ------------------------------------------------------------------------------------------------------------


def _create(pool: Pool, live: list[Claim], missing: int, cluster: Cluster, now: float) -> list[Action]:
    """Creations one after the other, each on the cluster as the ones before leave it."""
    if (obstacle := _obstacle(pool, live, missing, now)) is not None:
        return [obstacle]
    ordinals = _free_ordinals(pool, min(missing, _allowed(pool, live)))
    # The first container of a pool may use what is kept for first ones, the others may not.
    first = place_many(cluster.wanted(pool, first=True), 1 if ordinals and not live else 0, cluster, now)
    further = len(ordinals) - len(first.placed) if first.no_room is None else 0
    others = place_many(cluster.wanted(pool, first=False), further, first.cluster, now)
    placed = first.placed + others.placed
    actions: list[Action] = [
        Create(pool=pool.id, ordinal=ordinal, node=each.node, gpus=each.gpus, reason=each.reason)
        for ordinal, each in zip(ordinals, placed, strict=False)
    ]
    return [*actions, _note(pool, missing - len(actions), first.no_room or others.no_room, now)]


def _obstacle(pool: Pool, live: list[Claim], missing: int, now: float) -> Note | None:
    """What forbids any new start for now."""
    if pool.image_state == "building":
        return Note(pool=pool.id, missing=missing, message=f"image {pool.image} is being built")
    if pool.image_state == "failed":
        return Note(pool=pool.id, missing=missing, message=f"image {pool.image} failed to build: {pool.image_error}")
    trouble = pool.trouble
    if trouble is None or trouble.over:
        return None
    if now < backoff.retry_at(trouble) or any(not claim.ready for claim in live):
        return _in_trouble(pool, missing, now)
    return None


def _allowed(pool: Pool, live: list[Claim]) -> int:
    """After a failed start one container tries first: a hundred would fail just the same."""
    if pool.trouble is not None and not pool.trouble.over:
        return 1
    return MAX_CREATES


def _free_ordinals(pool: Pool, number: int) -> list[int]:
    """The lowest that no claim has. Below max_containers: a claim is create-only, so that no number of schedulers can
    give the pool more containers than that."""
    assert pool.function is not None
    limit = pool.function.spec.scaling.max_containers
    # One that is about to be forgotten is still there, and its ordinal free only in the next round.
    taken = {claim.message.ordinal for claim in pool.claims}
    found: list[int] = []
    ordinal = 0
    while len(found) < number and (limit is None or ordinal < limit):
        if ordinal not in taken:
            found.append(ordinal)
        ordinal += 1
    return found


def _note(pool: Pool, missing: int, no_room: NoRoom | None, now: float) -> Note:
    if no_room is not None:
        return Note(pool=pool.id, missing=missing, message=no_room.message, rejected=no_room.rejected)
    if missing and pool.trouble is not None and not pool.trouble.over:
        return _in_trouble(pool, missing, now)
    # Still missing, but only until the next round (draining ones are leaving, or the round was full).
    return Note(pool=pool.id)


def _in_trouble(pool: Pool, missing: int, now: float) -> Note:
    trouble = pool.trouble
    assert trouble is not None
    return Note(
        pool=pool.id,
        missing=missing,
        message=backoff.describe(trouble, now),
        retry_at=backoff.retry_at(trouble),
        failures=trouble.failures,
        user_error=trouble.user_error,
        killed=trouble.killed,
    )
