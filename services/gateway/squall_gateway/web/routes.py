"""Routes: from a pool to a container with a free slot. Holds requests while there is none, and tells the demand.

Owns who waits (first come, first served) and how many requests each node has from here. Slots are the agents': one that
says busy is asked again when something has changed.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from squall.errors import NoContainerError
from squall.ids import new_id
from squall_bus import Bus
from squall_contracts import subjects
from squall_contracts.nodes import NODES, ClaimState, NodeFact
from squall_contracts.scaling import WebDemand
from squall_gateway.fleet import Fleet
from squall_gateway.waiting import Waiting
from squall_gateway.web.upstream import Busy, Unreachable, Upstream
from squall_service.telemetry import log

TELL_S = 0.5
LOOK_S = 0.1
"""How often the first in line asks agents again if nothing was heard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A request that looks for a container."""

    pool: str
    ask: dict[str, Any]
    opening: dict[str, Any]
    hold_s: float
    max_held: int
    """Requests that may wait at this gateway."""
    dev: bool
    """Whoever sends it is likely to be the developer: told why nothing starts."""


@dataclass(slots=True)
class PoolRoutes:
    """One pool as this gateway uses it."""

    held: deque[asyncio.Event] = field(default_factory=deque)
    """Requests without a container, the oldest first; an event is set when looking again may help."""
    running: Counter[str] = field(default_factory=Counter)
    """By node."""
    told: bool = False
    users: int = 0
    """Requests that look for a container, or have one: it is forgotten only without any."""

    def look_again(self) -> None:
        """Something has changed."""
        if self.held:
            self.held[0].set()


class Routes:
    """All pools."""

    def __init__(self, bus: Bus, fleet: Fleet, waiting: Waiting) -> None:
        self._bus = bus
        self._fleet = fleet
        self._waiting = waiting
        self._gateway = new_id("gw")
        self._pools: dict[str, PoolRoutes] = {}
        self._nodes: dict[str, tuple[str, str]] = {}
        fleet.on_claims = self._on_claims

    @asynccontextmanager
    async def open(self, wanted: Wanted) -> AsyncIterator[Upstream]:
        """A connection to a container that has taken the request. Raises `NoContainerError`."""
        routes = self._pools.setdefault(wanted.pool, PoolRoutes())
        routes.users += 1
        try:
            node, upstream = await self._find(routes, wanted)
            routes.running[node] += 1
            try:
                yield upstream
            finally:
                upstream.close()
                routes.running[node] -= 1
                routes.look_again()
        finally:
            routes.users -= 1

    async def _find(self, routes: PoolRoutes, wanted: Wanted) -> tuple[str, Upstream]:
        if not routes.held and (found := await self._try(routes, wanted)):
            return found
        if sum(len(each.held) for each in self._pools.values()) >= wanted.max_held:
            raise self._no_container(wanted, f"{wanted.max_held} requests wait for containers already")
        turn = asyncio.Event()
        routes.held.append(turn)
        self._tell(wanted.pool, routes)
        try:
            async with asyncio.timeout(wanted.hold_s):
                while True:
                    if routes.held[0] is turn:
                        if found := await self._try(routes, wanted):
                            return found
                        self._give_up_if_hopeless(wanted)
                    await self._next_look(routes, turn)
        except TimeoutError as error:
            raise self._no_container(wanted, f"no container took the request within {wanted.hold_s:g} s") from error
        finally:
            routes.held.remove(turn)
            routes.look_again()

    async def _next_look(self, routes: PoolRoutes, turn: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(LOOK_S if routes.held[0] is turn else None):
                await turn.wait()
        except TimeoutError:
            pass
        turn.clear()

    async def _try(self, routes: PoolRoutes, wanted: Wanted) -> tuple[str, Upstream] | None:
        """Ask the nodes that have ready containers, the least loaded first."""
        claims = self._fleet.claims_of(wanted.pool)
        ready = Counter(claim.node for claim in claims if claim.state == ClaimState.READY)
        for node in sorted(ready, key=lambda name: routes.running[name] / ready[name]):
            address, key = await self._node(node)
            if not address:
                continue
            try:
                return node, await Upstream.ask(address, {**wanted.ask, "key": key}, wanted.opening)
            except Busy:
                continue
            except Unreachable as error:
                log.info("web_node_unreachable", node=node, reason=str(error))
                self._nodes.pop(node, None)
        return None

    async def _node(self, node: str) -> tuple[str, str]:
        """Address and key of a node's agent."""
        known = self._nodes.get(node)
        if known is None:
            entry = await self._bus.kv(NODES).get(node)
            fact = None if entry is None else NodeFact.decode(entry.value)
            known = ("", "") if fact is None else (fact.web, fact.web_key)
            if known[0]:
                self._nodes[node] = known
        return known

    def _give_up_if_hopeless(self, wanted: Wanted) -> None:
        """Containers that do not start, and none that does."""
        verdict = self._fleet.verdicts.get(wanted.pool)
        ready = any(claim.state == ClaimState.READY for claim in self._fleet.claims_of(wanted.pool))
        if verdict is not None and verdict.failures and not ready:
            raise self._no_container(wanted, "the function's containers do not start")

    def _no_container(self, wanted: Wanted, what: str) -> NoContainerError:
        why = self._waiting.text(wanted.pool)
        log.warning("web_request_not_served", pool=wanted.pool, reason=f"{what}: {why}")
        return NoContainerError(f"{what}: {why}" if wanted.dev and why else what)

    # ------------------------------------------------------------------ what is told and heard

    def _on_claims(self, pool: str) -> None:
        routes = self._pools.get(pool)
        if routes is not None:
            routes.look_again()

    def _tell(self, pool: str, routes: PoolRoutes) -> None:
        demand = WebDemand(pool=pool, gateway=self._gateway, held=len(routes.held), running=routes.running.total())
        routes.told = bool(demand.held or demand.running)
        self._bus.send(subjects.demand(self._bus.topology.region, pool), demand.encode())

    async def tick(self) -> None:
        """Tell every pool's demand, a last time when there is none any more."""
        for pool, routes in list(self._pools.items()):
            routes.running += Counter()  # drops nodes without requests
            busy = bool(routes.held or routes.running)
            if busy or routes.told:
                self._tell(pool, routes)
            if not busy and not routes.users:
                del self._pools[pool]
