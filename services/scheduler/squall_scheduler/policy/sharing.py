"""Sharing: who gives a busy container back when all room is taken and somebody has less than a fair share of it.

A container that gives way is drained: it finishes what it runs. A pool without any container gets its first one from a
pool that has several. Between workspaces the dominant shares are evened out (Ghodsi et al., "Dominant Resource
Fairness", NSDI 2011): a workspace gives a container to one that has less also afterwards. Owns no state, does no I/O.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from squall_scheduler.state import Claim, Cluster, Idle, PoolId, Wanted, milli


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What part of all machines together each workspace holds: of cores, memory, containers or devices, whichever is
    largest."""

    of_workspace: Mapping[str, float]
    of_one: Mapping[str, float]
    """By workspace, the share of its largest container: what it has less after it gave one back is at least its share
    without that."""

    def of(self, workspace: str) -> float:
        return self.of_workspace.get(workspace, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeker:
    """A pool that wants one container more."""

    workspace: str
    wanted: Wanted

    def precedes(self, other: Seeker, shares: Shares) -> bool:
        """Whether free room is for this one rather than for the other."""
        if self.wanted.first != other.wanted.first:
            return self.wanted.first
        return shares.of(self.workspace) < shares.of(other.workspace)


def shares(claims: Iterable[Claim], cluster: Cluster) -> Shares:
    """As things are; containers that are being drained are not counted."""
    total = _Total(cluster)
    held: dict[str, Counter[str]] = {}
    largest: dict[str, float] = {}
    for claim in claims:
        if claim.live:
            workspace, amounts = claim.message.workspace, _amounts(claim)
            held.setdefault(workspace, Counter()).update(amounts)
            largest[workspace] = max(largest.get(workspace, 0.0), total.share(amounts))
    return Shares(of_workspace={name: total.share(amounts) for name, amounts in held.items()}, of_one=largest)


def may_give_way(seeker: Seeker, claims: Sequence[Claim], now_held: Shares, cluster: Cluster) -> list[Idle]:
    """The ready containers that may be drained for the seeker, those of the pools with the most of them first.

    They have the form of idle ones because they are chosen from in the same way."""
    live = Counter(PoolId(claim.message.pool) for claim in claims if claim.live)
    total = _Total(cluster)
    after = now_held.of(seeker.workspace) + total.share(_amounts_of(seeker.wanted))
    found = []
    for claim in claims:
        pool, workspace = PoolId(claim.message.pool), claim.message.workspace
        if not claim.ready or pool == seeker.wanted.pool:
            continue
        several, first = live[pool] > 1, seeker.wanted.first
        fair = workspace != seeker.workspace and now_held.of(workspace) - now_held.of_one[workspace] >= after
        if (several and (first or fair)) or (first and fair):  # a pool's only one never goes for another's second
            found.append(Idle(claim=claim, since=-float(live[pool])))
    return found


class _Total:
    """Of all nodes that can be used."""

    def __init__(self, cluster: Cluster) -> None:
        self._amounts: Counter[str] = Counter()
        for node in cluster.nodes.values():
            if node.present:
                self._amounts.update(
                    cpu=node.cpu_milli, memory=node.memory_mib, containers=node.max_containers, gpus=len(node.gpus)
                )

    def share(self, amounts: Mapping[str, int]) -> float:
        return max((amount / self._amounts[name] for name, amount in amounts.items() if self._amounts[name]), default=0)


def _amounts(claim: Claim) -> dict[str, int]:
    message = claim.message
    return {
        "cpu": milli(message.cpu),
        "memory": message.memory_mib,
        "containers": 1,
        "gpus": len(message.gpus),
    }


def _amounts_of(wanted: Wanted) -> dict[str, int]:
    return {
        "cpu": wanted.cpu_milli,
        "memory": wanted.memory_mib,
        "containers": 1,
        "gpus": max((choice.count for choice in wanted.gpus), default=0),
    }
