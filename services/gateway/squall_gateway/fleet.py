"""What machines and containers do at the moment: a view of `containers`, `verdicts`, `desired`, `nodes` and the stats.

For answers and for the reason why a call waits. Decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from squall_bus import Bus, Change, Message
from squall_contracts import subjects
from squall_contracts.envelope import BadMessage
from squall_contracts.nodes import CONTAINERS, NODES, ContainerClaim, ContainerStats, NodeFact
from squall_contracts.scaling import DESIRED, VERDICTS, Desired, Verdict
from squall_gateway.directory import understood

STATS_OLD_S = 5.0
"""Stats come every second; older ones are of a node that is gone."""


@dataclass(frozen=True, slots=True)
class Running:
    """One row of a node's stats."""

    container: str
    pool: str
    inputs: int
    state: str


@dataclass(slots=True)
class Fleet:
    """The view. `run` keeps it up to date."""

    bus: Bus
    claims: dict[str, dict[str, ContainerClaim]] = field(default_factory=dict)
    """By pool, then by key."""
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    desired: dict[str, Desired] = field(default_factory=dict)
    on_claims: Callable[[str], None] = field(default=lambda pool: None)
    """Called when the containers of a pool, or what is said about them, have changed."""
    _stats: dict[str, bytes] = field(default_factory=dict)
    """The newest message of each node, undecoded: most of them are never looked at."""

    async def run(self) -> None:
        """Follow everything until cancelled."""
        region = self.bus.topology.region
        stats = await self.bus.subscribe(subjects.all_stats(region), self._on_stats)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow(CONTAINERS, self._on_claim))
                tasks.create_task(self._follow(VERDICTS, self._on_verdict))
                tasks.create_task(self._follow(DESIRED, self._on_desired))
        finally:
            await stats.close()

    async def _follow(self, bucket: str, on_change: Callable[[Change], None]) -> None:
        async with self.bus.kv(bucket).watch() as changes:
            async for change in changes:
                if not change.synced:
                    understood(change, on_change)

    def _on_claim(self, change: Change) -> None:
        pool = change.key.rpartition(".")[0]
        if change.value is not None:
            self.claims.setdefault(pool, {})[change.key] = ContainerClaim.decode(change.value)
        elif pool in self.claims:
            self.claims[pool].pop(change.key, None)
            if not self.claims[pool]:
                del self.claims[pool]
        self.on_claims(pool)

    def _on_verdict(self, change: Change) -> None:
        if change.value is None:
            self.verdicts.pop(change.key, None)
        else:
            self.verdicts[change.key] = Verdict.decode(change.value)
        self.on_claims(change.key)

    def _on_desired(self, change: Change) -> None:
        if change.value is None:
            self.desired.pop(change.key, None)
        else:
            self.desired[change.key] = Desired.decode(change.value)

    def _on_stats(self, message: Message) -> None:
        self._stats[message.subject.rpartition(".")[2]] = message.data

    # ------------------------------------------------------------------ answers

    def claims_of(self, pool: str) -> list[ContainerClaim]:
        """The containers of a pool."""
        return list(self.claims.get(pool, {}).values())

    def all_claims(self) -> list[ContainerClaim]:
        """The containers of every pool."""
        return [claim for claims in self.claims.values() for claim in claims.values()]

    def running(self, now: float) -> dict[str, Running]:
        """What each container does, by its id."""
        found: dict[str, Running] = {}
        for node, data in list(self._stats.items()):
            try:
                stats = ContainerStats.decode(data)
            except BadMessage:
                continue
            if now - stats.at > STATS_OLD_S:
                del self._stats[node]
                continue
            for container, pool, inputs, _, _, state in stats.containers:
                found[container] = Running(container, pool, inputs, state)
        return found

    async def nodes(self) -> list[NodeFact]:
        """Every machine that was heard of in the last ten seconds."""
        return [fact for fact, _ in await self.nodes_seen()]

    async def nodes_seen(self) -> list[tuple[NodeFact, float]]:
        """The same, with the time by the bus server's clock at which each was written."""
        entries = await self.bus.kv(NODES).entries()
        return [(NodeFact.decode(entry.value), entry.created_at) for entry in entries]
