"""Eviction: which idle containers of other pools end early, so that a container that is needed now finds room.

An idle container is kept for its scaledown window in the hope of more work; a waiting input is certain. Owns no state,
does no I/O. It never picks a busy container, nor one that its pool must keep (min_containers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from squall_scheduler.policy.placement import Placed, place
from squall_scheduler.state import Cluster, Idle, NodeId, PoolId, Wanted

IDLE_S = 1.0
"""Idle for less may just be between two inputs."""
IDLE_FIRST_S = 0.25
"""The same where a pool has no container at all."""
MOST = 16
"""Containers that may be ended in one round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Where the container fits once `victims` (and what is draining already) have gone."""

    node: NodeId
    gpus: tuple[str, ...]
    victims: tuple[Idle, ...] = ()


def evictions(
    wanted: Wanted, number: int, cluster: Cluster, idle: Sequence[Idle], spare: Mapping[PoolId, int], now: float
) -> list[Idle]:
    """What to end so that `number` containers find room; as many of them as can be helped.

    `cluster` is as it will be once everything that is draining has gone; `spare` says how many each pool can lose."""
    left, chosen = dict(spare), list[Idle]()
    youngest = IDLE_FIRST_S if wanted.first else IDLE_S
    candidates = [each for each in idle if each.claim.message.pool != wanted.pool and now - each.since >= youngest]
    for _ in range(min(number, MOST)):
        room = make_room(wanted, cluster, candidates, left, now)
        if room is None or len(chosen) + len(room.victims) > MOST:
            break
        for victim in room.victims:
            cluster = cluster.without_container(victim.claim)
            candidates.remove(victim)
            left[PoolId(victim.claim.message.pool)] -= 1
        cluster = cluster.with_container(room.node, wanted, room.gpus)
        chosen += room.victims
    return chosen


def make_room(
    wanted: Wanted, cluster: Cluster, idle: Sequence[Idle], spare: Mapping[PoolId, int], now: float
) -> Room | None:
    """Room for one container with the fewest victims, of these the longest idle; None if there is no way."""
    match place(wanted, cluster, now):
        case Placed(node=node, gpus=gpus):
            return Room(node=node, gpus=gpus)
        case _:
            pass
    options = [
        room
        for node_id in sorted(cluster.nodes)
        if (room := _room_on(node_id, wanted, cluster, idle, spare, now)) is not None
    ]
    return min(options, key=lambda room: (len(room.victims), room.victims[0].since, room.node), default=None)


def _room_on(
    node: NodeId, wanted: Wanted, cluster: Cluster, idle: Sequence[Idle], spare: Mapping[PoolId, int], now: float
) -> Room | None:
    """Room on one node: its idle containers go, the longest idle first, until it fits."""
    alone = Cluster(nodes={node: cluster.nodes[node]}, heard_since=cluster.heard_since)
    left, victims = dict(spare), list[Idle]()
    here = [each for each in idle if each.claim.node == node]
    for each in sorted(here, key=lambda candidate: (candidate.since, candidate.claim.key)):
        pool = PoolId(each.claim.message.pool)
        if left.get(pool, 0) <= 0:
            continue
        left[pool] -= 1
        victims.append(each)
        alone = alone.without_container(each.claim)
        match place(wanted, alone, now):
            case Placed(gpus=gpus):
                return Room(node=node, gpus=gpus, victims=tuple(victims))
            case _:
                pass
    return None
