"""Cluster: what the scheduler knows, as a pure fold of facts from the bus into a frozen snapshot.

Owns the view of nodes, claims, pools and what they wait for. Does no I/O and has no clock: the time at which a fact was
seen is an argument. Decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NewType

from squall.spec import DISK_IN_MEMORY_MIB, GpuRequest
from squall_contracts.functions import FunctionRecord, PoolRecord
from squall_contracts.nodes import NODE_TTL_S, ClaimState, ContainerClaim, claim_key
from squall_contracts.scaling import Desired, Verdict

NodeId = NewType("NodeId", str)
PoolId = NewType("PoolId", str)

LIVE = frozenset({ClaimState.PROPOSED, ClaimState.STARTING, ClaimState.READY})
"""States that count towards the desired number."""
HOLDING = LIVE | {ClaimState.DRAINING}
"""States in which a claim holds its share of the node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the claims on one node hold. Cores in thousandths: sums of floats would drift."""

    cpu_milli: int = 0
    memory_mib: int = 0
    containers: int = 0
    gpus: frozenset[str] = frozenset()

    def plus(self, cpu_milli: int, memory_mib: int, gpus: Iterable[str]) -> Usage:
        """With one container more."""
        return Usage(
            cpu_milli=self.cpu_milli + cpu_milli,
            memory_mib=self.memory_mib + memory_mib,
            containers=self.containers + 1,
            gpus=self.gpus | frozenset(gpus),
        )

    def minus(self, cpu_milli: int, memory_mib: int, gpus: Iterable[str]) -> Usage:
        """With one container less."""
        return Usage(
            cpu_milli=self.cpu_milli - cpu_milli,
            memory_mib=self.memory_mib - memory_mib,
            containers=self.containers - 1,
            gpus=self.gpus - frozenset(gpus),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device."""

    uuid: str
    type: str
    trouble: str = ""
    """Why it cannot be assigned; empty = it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine and what is left of it."""

    id: NodeId
    cpu_milli: int
    memory_mib: int
    gpus: tuple[Gpu, ...] = ()
    backends: frozenset[str] = frozenset({"process"})
    images: frozenset[str] = frozenset()
    templates: frozenset[str] = frozenset()
    max_containers: int = 256
    draining: bool = False
    preemptible: bool = False
    """May be taken away at short notice."""
    no_disks: str = ""
    """Why its containers cannot have files on disk; empty = they can."""
    no_buckets: str = ""
    """Why its containers cannot have buckets; empty = they can."""
    no_gpus: str = ""
    """Why its containers cannot have the devices that it tells; empty = they can."""
    present: bool = True
    """False once its key is gone from the bucket: no new container, though those it has may still run."""
    seen_at: float = 0.0
    """Our clock when the last fact came: nodes' own clocks may differ."""
    used: Usage = field(default_factory=Usage)

    def silent_for_s(self, now: float) -> float:
        """Seconds since the last fact."""
        return max(0.0, now - self.seen_at)

    def with_container(self, wanted: Wanted, gpus: Iterable[str]) -> Node:
        """As it will be once `wanted` is on it."""
        return replace(self, used=self.used.plus(wanted.cpu_milli, wanted.memory_mib, gpus))

    def alive(self, now: float) -> bool:
        """Whether it may get a container."""
        return self.present and self.silent_for_s(now) < NODE_TTL_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A stored claim and the revision at which it was read, which every change of it must name."""

    message: ContainerClaim
    revision: int

    @property
    def key(self) -> str:
        return claim_key(self.message.pool, self.message.ordinal)

    @property
    def node(self) -> NodeId:
        return NodeId(self.message.node)

    @property
    def live(self) -> bool:
        """Counts towards the desired number."""
        return self.message.state in LIVE

    @property
    def holding(self) -> bool:
        """Holds its share of the node."""
        return self.message.state in HOLDING

    @property
    def proposed(self) -> bool:
        return self.message.state == ClaimState.PROPOSED

    @property
    def ready(self) -> bool:
        return self.message.state == ClaimState.READY


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """A ready container that runs nothing."""

    claim: Claim
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why starts of a pool fail."""

    failures: int
    failed_at: float
    reason: str
    user_error: bool = False
    over: bool = False
    """A container became ready since; the count is kept, so that a pool that flaps still backs off."""
    killed: int = 0
    """Starts in a row that were killed, with no container ready in between."""

    @property
    def killed_before(self) -> int:
        """Of the next start."""
        return 0 if self.over else self.killed


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A node said no to a pool, or did not answer."""

    reason: str
    times: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What one more container of a pool needs."""

    pool: PoolId
    function_id: str
    image: str
    isolation: str
    cpu_milli: int
    memory_mib: int
    gpus: tuple[GpuRequest, ...] = ()
    nonpreemptible: bool = False
    disk_mib: int = 0
    """On disk, not in memory."""
    buckets: bool = False
    """It mounts some."""
    first: bool = True
    """The pool has no container yet."""
    refusals: Mapping[NodeId, Refusal] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One pool: what it should have, what it has, and what stands in its way."""

    id: PoolId
    record: PoolRecord | None = None
    function: FunctionRecord | None = None
    stopped: bool = False
    """Its app is stopped."""
    desired: Desired | None = None
    evicted: int = 0
    """Containers that made room for others, and that the autoscaler still counts."""
    claims: tuple[Claim, ...] = ()
    """By ordinal."""
    idle_since: Mapping[str, float] = field(default_factory=dict)
    """By container; 0 = busy, missing = nothing is known."""
    image: str = ""
    image_state: str = ""
    image_error: str = ""
    trouble: Trouble | None = None
    refusals: Mapping[NodeId, Refusal] = field(default_factory=dict)
    verdict: Verdict | None = None

    @property
    def killed_before(self) -> int:
        """Starts in a row that were killed before the next one; none while a container is there that could work."""
        if self.trouble is None or any(claim.message.state == ClaimState.READY for claim in self.claims):
            return 0
        return self.trouble.killed_before

    def wanted(self, *, first: bool) -> Wanted:
        """What its next container needs. Only for a pool whose function is known."""
        assert self.function is not None
        spec = self.function.spec
        return Wanted(
            pool=self.id,
            function_id=self.function.function_id,
            image=self.image,
            isolation=spec.isolation,
            cpu_milli=milli(spec.resources.cpu),
            memory_mib=spec.resources.memory_mib,
            gpus=spec.resources.gpus,
            nonpreemptible=spec.nonpreemptible,
            disk_mib=disk_mib if (disk_mib := spec.resources.ephemeral_disk_mib or 0) > DISK_IN_MEMORY_MIB else 0,
            buckets=bool(spec.buckets),
            first=first,
            refusals=self.refusals,
        )


def shrunk(wanted: int, largest: int) -> int:
    """Half of what the largest machine has, for whoever wants more than all of it: others find room beside."""
    return wanted if wanted <= largest else largest // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """All nodes at one moment."""

    nodes: Mapping[NodeId, Node]
    heard_since: float = 0.0
    """Since when we could hear nodes without a break; a node that is silent longer than that is really silent."""
    shrink_larger: bool = False
    """See the setting of that name."""

    def wanted(self, pool: Pool, *, first: bool) -> Wanted:
        """What the pool's next container needs: half of a machine if it asks for more than any has."""
        wanted = pool.wanted(first=first)
        if not self.shrink_larger or not self.nodes:
            return wanted
        return replace(
            wanted,
            cpu_milli=shrunk(wanted.cpu_milli, max(node.cpu_milli for node in self.nodes.values())),
            memory_mib=shrunk(wanted.memory_mib, max(node.memory_mib for node in self.nodes.values())),
        )

    def with_container(self, node: NodeId, wanted: Wanted, gpus: Iterable[str]) -> Cluster:
        """As it will be once `wanted` is on `node`."""
        return replace(self, nodes={**self.nodes, node: self.nodes[node].with_container(wanted, gpus)})

    def without_container(self, claim: Claim) -> Cluster:
        """As it will be once the container of `claim` is gone."""
        old = self.nodes.get(claim.node)
        if old is None or not claim.holding:
            return self
        message = claim.message
        new = replace(old, used=old.used.minus(milli(message.cpu), message.memory_mib, message.gpus))
        return replace(self, nodes={**self.nodes, claim.node: new})

    def lost(self, node: NodeId, now: float) -> bool:
        """Whether a node is gone for good, so that its claims may be given to others."""
        known = self.nodes.get(node)
        silent_since = max(self.heard_since, known.seen_at if known else 0.0)
        return now - silent_since > NODE_TTL_S


def milli(cores: float) -> int:
    """Cores in thousandths, rounded up: a request is never counted as less than it is."""
    return math.ceil(round(cores * 1000, 6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What is known of an accepted input without a result."""

    deadline: float
    """After this it must not start."""
    over_at: float
    """After this no attempt of it can still be running, whatever happened."""
    queued: bool
    """It is in WORK: it waits, or an agent has a lease on it."""
    delivered: bool = False
    """It was given to an agent at least once."""
    missing_since: float = 0.0
    """Since when it is known not to be in WORK."""
    pool_alive: bool = False
    """Its pool has a container."""
