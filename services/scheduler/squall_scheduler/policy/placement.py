"""Placement: picks the node, and the devices, for one container. Owns no state, does no I/O.

A node that cannot take the container says why; if none can, the reasons of all of them are the decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from squall.spec import GpuRequest
from squall_scheduler.policy.devices import choose
from squall_scheduler.policy.wording import against, explain
from squall_scheduler.state import Cluster, Node, NodeId, Wanted

ISOLATION = {"process": 0, "docker": 1, "sandbox": 1, "gvisor": 2}
"""Backends by how much they isolate; a function may get more than it demands."""

NO_TEMPLATE_COST = 0.15
NO_IMAGE_COST = 0.25
# Locality in units of load: a node with the image is preferred until it is a quarter of a machine fuller than one
# without. Were it absolute, the first node to start a function would get every further container of it.

RESERVE_SHARE = 8
RESERVE_CPU_MILLI = 250
RESERVE_MEMORY_MIB = 256
RESERVE_CONTAINERS = 2
# What further containers of a pool leave free for the first container of other pools. Without it one wide map fills the
# machine, and functions that its inputs call wait for ever for the room that their callers hold. At most an eighth of a
# node, and only against containers that are themselves no larger than that.


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The container goes there."""

    node: NodeId
    gpus: tuple[str, ...]
    """uuids of its devices."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoRoom:
    """No node can take it."""

    rejected: Mapping[NodeId, str]
    """Why, by node: {"gpu-3": "is full (needs 40 GiB, 24 GiB free)"}."""
    message: str
    """One sentence for the user who waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What one node says to one choice."""

    gpus: tuple[str, ...] = ()
    upgrades: int = 0
    """How far the devices are from what was asked for."""
    refusal: str = ""
    """Empty = it fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placements:
    """What became of several equal containers."""

    placed: tuple[Placed, ...]
    no_room: NoRoom | None
    """Why there are not more."""
    cluster: Cluster
    """As it is with them."""


def place(wanted: Wanted, cluster: Cluster, now: float) -> Placed | NoRoom:
    """The best node for the first GPU choice that any node can satisfy.

    Best: nearest devices, then least load after placement plus locality costs, then fewest containers, then node id.
    """
    for choice in _choices(wanted):
        best = min(_fitting(wanted, choice, cluster, now), default=None)
        if best is not None:
            return _placed(best, cluster.nodes[best.node], wanted, choice)
    return no_room(wanted, cluster, now)


def place_many(wanted: Wanted, number: int, cluster: Cluster, now: float) -> Placements:
    """The same for several containers, one after the other; only the node that took one is looked at again."""
    placed: list[Placed] = []
    changed = dict(cluster.nodes)
    for choice in _choices(wanted):
        candidates = list(_fitting(wanted, choice, Cluster(nodes=changed), now))
        heapify(candidates)
        while candidates and len(placed) < number:
            best = heappop(candidates)
            node = changed[best.node]
            placed.append(_placed(best, node, wanted, choice))
            node = node.with_container(wanted, best.gpus)
            changed[node.id] = node
            if (again := _candidate(node, wanted, choice, now)) is not None:
                heappush(candidates, again)
    after = replace(cluster, nodes=changed)
    refused = no_room(wanted, after, now) if len(placed) < number else None
    return Placements(placed=tuple(placed), no_room=refused, cluster=after)


def no_room(wanted: Wanted, cluster: Cluster, now: float) -> NoRoom:
    """What each node says against the container."""
    rejected = {}
    for node_id in sorted(cluster.nodes):
        refusals = [fit_on(cluster.nodes[node_id], wanted, choice, now).refusal for choice in _choices(wanted)]
        rejected[node_id] = "; ".join(dict.fromkeys(refusals))
    return NoRoom(rejected=rejected, message=explain(wanted, rejected))


class Candidate(NamedTuple):
    """A node that can take the container; the smallest is the best."""

    rank: tuple[float, ...]
    node: NodeId
    gpus: tuple[str, ...]


def _choices(wanted: Wanted) -> Sequence[GpuRequest | None]:
    return wanted.gpus or (None,)


def _fitting(wanted: Wanted, choice: GpuRequest | None, cluster: Cluster, now: float) -> Iterator[Candidate]:
    for node in cluster.nodes.values():
        if (candidate := _candidate(node, wanted, choice, now)) is not None:
            yield candidate


def _candidate(node: Node, wanted: Wanted, choice: GpuRequest | None, now: float) -> Candidate | None:
    fit = fit_on(node, wanted, choice, now)
    return None if fit.refusal else Candidate(_rank(node, wanted, fit), node.id, fit.gpus)


def _placed(candidate: Candidate, node: Node, wanted: Wanted, choice: GpuRequest | None) -> Placed:
    return Placed(node=candidate.node, gpus=candidate.gpus, reason=_why(node, wanted, choice))


def fit_on(node: Node, wanted: Wanted, choice: GpuRequest | None, now: float) -> Fit:
    """Whether `wanted` fits on `node`; the first thing that stands against it."""
    refusal = _unfit(node, wanted, now) or _lacking(node, wanted)
    if choice is None:
        return Fit(refusal=refusal)
    devices = choose(node, choice)
    # What the node has no device for is said first: "is full" would let the user wait for nothing.
    return Fit(gpus=devices.gpus, upgrades=devices.upgrades, refusal=devices.refusal or refusal)


def _unfit(node: Node, wanted: Wanted, now: float) -> str:
    """Why the node takes nothing, or nothing of this pool."""
    if not node.present:
        return "has left"
    if not node.alive(now):
        return f"has not been heard of for {node.silent_for_s(now):.0f} s"
    if node.draining:
        return "is draining"
    if wanted.nonpreemptible and node.preemptible:
        return "can be taken away at short notice (preemptible), which the function does not accept"
    if (refusal := wanted.refusals.get(node.id)) and now < refusal.at + refusal_pause_s(refusal.times):
        return refusal.reason
    if not any(ISOLATION.get(b, -1) >= ISOLATION.get(wanted.isolation, 99) for b in node.backends):
        return f"offers {', '.join(sorted(node.backends)) or 'no backend'}, not {wanted.isolation}"
    if wanted.disk_mib and node.no_disks:
        return f"cannot give ephemeral_disk={wanted.disk_mib} ({node.no_disks})"
    if wanted.buckets and node.no_buckets:
        return f"cannot mount buckets ({node.no_buckets})"
    if wanted.gpus and node.no_gpus:
        return f"gives no GPUs to containers ({node.no_gpus})"
    return ""


def _lacking(node: Node, wanted: Wanted) -> str:
    """Which resource it is too short of."""
    used = node.used
    cpu, memory = node.cpu_milli - used.cpu_milli, node.memory_mib - used.memory_mib
    slots = node.max_containers - used.containers
    if wanted.cpu_milli > node.cpu_milli or wanted.memory_mib > node.memory_mib:
        return f"is too small ({against(wanted, node.cpu_milli, node.memory_mib, 'in all')})"
    if wanted.cpu_milli > cpu or wanted.memory_mib > memory:
        return f"is full ({against(wanted, cpu, memory, 'free')})"
    if slots < 1:
        return f"is full (runs {used.containers} of {node.max_containers} containers)"
    if not wanted.first and _in_reserve(node, wanted):
        return "is full (keeps its last room for first containers of other functions)"
    return ""


def _in_reserve(node: Node, wanted: Wanted) -> bool:
    """Whether the container would take what is kept for other pools' first ones."""
    cpu = min(RESERVE_CPU_MILLI, node.cpu_milli // RESERVE_SHARE)
    memory = min(RESERVE_MEMORY_MIB, node.memory_mib // RESERVE_SHARE)
    slots = min(RESERVE_CONTAINERS, node.max_containers // RESERVE_SHARE)
    after = node.used.plus(wanted.cpu_milli, wanted.memory_mib, ())
    return (
        (wanted.cpu_milli <= cpu and after.cpu_milli > node.cpu_milli - cpu)
        or (wanted.memory_mib <= memory and after.memory_mib > node.memory_mib - memory)
        or after.containers > node.max_containers - slots
    )


def _rank(node: Node, wanted: Wanted, fit: Fit) -> tuple[float, ...]:
    """Lower is better."""
    after = node.used.plus(wanted.cpu_milli, wanted.memory_mib, fit.gpus)
    load = max(
        after.cpu_milli / max(1, node.cpu_milli),
        after.memory_mib / max(1, node.memory_mib),
        after.containers / max(1, node.max_containers),
        len(after.gpus) / max(1, len(node.gpus)),
    )
    if wanted.function_id not in node.templates:
        load += NO_TEMPLATE_COST
    if wanted.image not in node.images:
        load += NO_IMAGE_COST
    if node.gpus and not wanted.gpus:
        load += 1.0  # a machine with devices is the last to take what needs none
    return (float(fit.upgrades), round(load, 9), float(after.containers))


def _why(node: Node, wanted: Wanted, choice: GpuRequest | None) -> str:
    found = []
    if choice is not None:
        found.append(f"{choice.count} {choice.type}")
    if wanted.function_id in node.templates:
        found.append("template here")
    elif wanted.image in node.images:
        found.append("image here")
    found.append(f"{node.used.containers} containers before")
    return ", ".join(found)


def refusal_pause_s(times: int) -> float:
    """How long a node that refused a pool is not asked again: 1, 2, 4 .. 30 s."""
    return min(30.0, 2.0 ** max(0, times - 1))
