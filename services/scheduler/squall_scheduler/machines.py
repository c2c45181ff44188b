"""Machines: the nodes, what the claims on each hold, and which of its containers are idle. A fold; no I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from squall_contracts.nodes import ContainerStats, NodeFact
from squall_scheduler.state import Claim, Cluster, Gpu, Node, NodeId, PoolId, Usage, milli

STATS_TTL_S = 3.5
"""Three missed messages: what a node said about idleness before that no longer counts."""
FORGET_NODE_S = 300.0
CLOCK_JUMP_S = 2.0
"""By which the wall clock may drift from the monotonic one between two looks; more is a jump."""


class Machines:
    """Everything that is known by node."""

    def __init__(self) -> None:
        self.shrink_larger = False
        """See the setting of that name."""
        self.heard_since = 0.0
        """Since when nodes can be heard without a break."""
        self._clock_offset: float | None = None
        self._nodes: dict[NodeId, Node] = {}
        self._stale_usage: set[NodeId] = set()
        self._claims: dict[NodeId, dict[str, Claim]] = {}
        self._idle: dict[NodeId, tuple[float, dict[str, float]]] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    # ------------------------------------------------------------------ views

    def cluster(self) -> Cluster:
        """All nodes, each with what its claims hold."""
        for node_id in self._stale_usage:
            if (node := self._nodes.get(node_id)) is not None:
                self._nodes[node_id] = replace(node, used=self._usage(node_id))
        self._stale_usage.clear()
        return Cluster(nodes=dict(self._nodes), heard_since=self.heard_since, shrink_larger=self.shrink_larger)

    def pools_on(self, node: NodeId) -> set[PoolId]:
        """The pools that have a claim on a node."""
        return {PoolId(claim.message.pool) for claim in self._claims.get(node, {}).values()}

    def lost(self, now: float) -> set[NodeId]:
        """Nodes that still have claims and are gone for good."""
        cluster = self.cluster()
        return {node for node, claims in self._claims.items() if claims and cluster.lost(node, now)}

    def idle_since(self, claims: Iterable[Claim], now: float) -> dict[str, float]:
        """By container, since when it is idle; 0 = busy. Those of which nothing is known now are left out."""
        found = {}
        for claim in claims:
            seen_at, idle = self._idle.get(claim.node, (0.0, {}))
            if now - seen_at <= STATS_TTL_S and claim.message.container in idle:
                found[claim.message.container] = idle[claim.message.container]
        return found

    def busy(self, claims: Iterable[Claim], now: float) -> set[str]:
        """The containers that are known to run something."""
        return {container for container, since in self.idle_since(claims, now).items() if not since}

    # ------------------------------------------------------------------ facts

    def clock_read(self, now: float, monotonic: float) -> None:
        """Our clock as it is now. When it has jumped, what was seen a moment ago looks old: nodes are not silent
        because of that, and their silence counts from here."""
        offset = now - monotonic
        if self._clock_offset is not None and abs(offset - self._clock_offset) > CLOCK_JUMP_S:
            self.heard_since = now
        self._clock_offset = offset

    def node_seen(self, fact: NodeFact, now: float) -> bool:
        """A node told what it has. True if it may take more, or other, containers than before."""
        node_id = NodeId(fact.node)
        old = self._nodes.get(node_id)
        new = Node(
            id=node_id,
            cpu_milli=int(round(fact.cpu * 1000, 6)),
            memory_mib=fact.memory_mib,
            gpus=tuple(Gpu(uuid=gpu.uuid, type=gpu.type, trouble=gpu.trouble) for gpu in fact.gpus),
            backends=frozenset(fact.backends),
            images=frozenset(fact.images),
            templates=frozenset(fact.templates),
            max_containers=fact.max_containers,
            draining=fact.draining,
            preemptible=fact.preemptible,
            no_disks=fact.no_disks,
            no_buckets=fact.no_buckets,
            no_gpus=fact.no_gpus,
            seen_at=now,
            used=old.used if old else Usage(),
        )
        self._nodes[node_id] = new
        if old is None:
            self._stale_usage.add(node_id)
            return True
        comparable = replace(old, seen_at=now, images=new.images, templates=new.templates)
        return comparable != new or not old.alive(now)

    def node_gone(self, node: NodeId) -> None:
        """Its key was deleted, or expired: nothing new goes there."""
        if (known := self._nodes.get(node)) is not None:
            self._nodes[node] = replace(known, present=False)

    def drop_silent(self, now: float) -> None:
        """Nodes that have been away for long and hold nothing are no longer worth a reason in a verdict."""
        for node_id, node in list(self._nodes.items()):
            if node.silent_for_s(now) > FORGET_NODE_S and not self._claims.get(node_id):
                del self._nodes[node_id]
                self._idle.pop(node_id, None)

    def stats_seen(self, stats: ContainerStats, now: float) -> None:
        """What a node's containers are doing; rows: container, pool, running, slots, idle since, state."""
        idle = {str(row[0]): 0.0 if row[2] else float(row[4]) for row in stats.containers}
        self._idle[NodeId(stats.node)] = (now, idle)

    def claim_stored(self, claim: Claim) -> None:
        """A claim of this node is there, or has changed."""
        self._claims.setdefault(claim.node, {})[claim.key] = claim
        self._stale_usage.add(claim.node)

    def claim_removed(self, claim: Claim) -> None:
        """A claim of this node is gone."""
        self._claims.get(claim.node, {}).pop(claim.key, None)
        self._stale_usage.add(claim.node)

    def _usage(self, node: NodeId) -> Usage:
        usage = Usage()
        for claim in self._claims.get(node, {}).values():
            if claim.holding:
                usage = usage.plus(milli(claim.message.cpu), claim.message.memory_mib, claim.message.gpus)
        return usage
