"""Facts: what this node has and what its containers are doing, told to everybody. Decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from squall_bus import Bus, BusError
from squall_contracts import subjects
from squall_contracts.nodes import NODES, ContainerStats, NodeFact
from squall_gpu_agent.capacity import Capacity
from squall_gpu_agent.identity import Identity
from squall_gpu_agent.pools import Pools
from squall_service.clock import Clock
from squall_service.telemetry import log

NODE_FACT_S = 3.0
STATS_S = 1.0
STATS_MIN_S = 0.05
"""At most 20 stats messages a second when the load changes."""


class NodeFacts:
    """The node's entry in the bucket `nodes`, which vanishes 10 s after the agent."""

    def __init__(
        self, bus: Bus, identity: Identity, clock: Clock, capacity: Capacity, zone: str, preemptible: bool = False
    ) -> None:
        self.web: Callable[[], tuple[str, str]] = lambda: ("", "")
        """Address and key of the door for web requests."""
        self.images: Callable[[], tuple[str, ...]] = tuple
        """Images that are on this machine: one that has a function's image is preferred for its containers."""
        self._nodes = bus.kv(NODES)
        self._identity = identity
        self._clock = clock
        self._capacity = capacity
        self._zone = zone
        self._preemptible = preemptible
        self._started_at = clock.now()

    def fact(self) -> NodeFact:
        """The node now."""
        capacity = self._capacity
        web, web_key = self.web()
        return NodeFact(
            node=self._identity.node,
            region=self._identity.region,
            at=self._clock.now(),
            cpu=capacity.cpu,
            memory_mib=capacity.memory_mib,
            cpu_used=round(capacity.cpu_used, 6),
            memory_used_mib=capacity.memory_used_mib,
            gpus=capacity.gpus.facts(),
            gpus_used=capacity.gpus_used,
            gpu_note=capacity.gpus.note,
            backends=capacity.capabilities.backends,
            backend_notes=capacity.capabilities.notes,
            no_disks=capacity.capabilities.no_disks,
            no_buckets=capacity.capabilities.no_buckets,
            no_gpus=capacity.capabilities.no_gpus,
            images=self.images(),
            max_containers=capacity.max_containers,
            containers=len(capacity.reserved),
            draining=capacity.draining or capacity.leaving_at > 0,
            preemptible=self._preemptible,
            leaving_at=capacity.leaving_at,
            zone=self._zone,
            started_at=self._started_at,
            web=web,
            web_key=web_key if web else "",
        )

    async def publish(self) -> None:
        """Renew the entry."""
        try:
            await self._nodes.put(self._identity.node, self.fact().encode())
        except BusError as error:
            log.warning("node_fact_not_published", reason=error.message)

    async def remove(self) -> None:
        """This node is gone, by its own will."""
        try:
            await self._nodes.delete(self._identity.node)
        except BusError as error:
            log.warning("node_fact_not_removed", reason=error.message)


class Stats:
    """What the containers do: every second, and soon after a change."""

    def __init__(self, bus: Bus, identity: Identity, clock: Clock, pools: Callable[[], Pools]) -> None:
        self._bus = bus
        self._identity = identity
        self._clock = clock
        self._pools = pools
        self._scheduled = False
        self._published_at = 0.0

    def changed(self) -> None:
        """The load of a container changed."""
        if not self._scheduled:
            self._scheduled = True
            wait_s = max(0.0, self._published_at + STATS_MIN_S - self._clock.monotonic())
            asyncio.get_running_loop().call_later(wait_s, self._publish_change)

    def _publish_change(self) -> None:
        self._scheduled = False
        self.publish()

    def publish(self) -> None:
        """Tell the present load."""
        self._published_at = self._clock.monotonic()
        rows: list[list[object]] = []
        prefetched = {}
        for pool in self._pools():
            prefetched[pool.pool] = pool.waiting
            for container in pool.containers.values():
                idle_since = 0.0 if container.running else container.idle_since
                state = "draining" if container.closed else "ready"
                rows.append([container.id, pool.pool, container.running, container.slots, idle_since, state])
        stats = ContainerStats(
            node=self._identity.node,
            at=self._clock.now(),
            containers=rows,
            prefetched=prefetched,
            finished=self._pools().finished(),
        )
        self._bus.send(subjects.stats(self._identity.region, self._identity.node), stats.encode())
