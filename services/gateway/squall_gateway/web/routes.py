"""Routes: from a pool to a container with a free slot. Holds requests while there is none, and tells the demand.

Owns who waits (first come, first served) and how many requests each node has from here. Slots are the agents': one that
says busy is asked again when something has changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from squall.errors import NoContainerError, RequestLostError, ResourceExhaustedError, WebStartError
from squall.ids import new_id
from squall_bus import Bus
from squall_contracts import subjects
from squall_contracts.nodes import NODES, ClaimState, ContainerClaim, NodeFact
from squall_contracts.scaling import WebDemand
from squall_gateway.fleet import Fleet
from squall_gateway.waiting import Waiting
from squall_gateway.web.connections import Connections
from squall_gateway.web.upstream import Busy, Unreachable, Upstream
from squall_service.telemetry import log

TELL_S = 0.5
LOOK_S = 0.1
"""How often the first in line asks agents again if nothing was heard."""
DOUBT_S = 5.0
"""An agent that could not be reached is asked last for so long: each request would wait for it anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A request that looks for a container."""

    pool: str
    ask: dict[str, Any]
    first: bytes
    """What goes to the container before anything else: OPEN, and the body if it is small."""
    raw: bool
    """Bytes, not frames, come back."""
    whole: bool = False
    """`first` is all of it: the connection that it takes can be used again."""
    repeatable: bool
    """Nothing is lost if two containers get it: its method only reads."""
    hold_s: float
    """0: it does not wait; told at once whether there is no container, or none that is free."""
    max_held: int
    """Requests that may wait at this gateway."""
    app: str = ""
    """For the hint in an error."""
    dev: bool
    """Whoever sends it is likely to be the developer: told why nothing starts."""
    session: str = ""
    """Requests of one session go to the same container, as long as it is there and has room."""


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


class Route:
    """A connection to a container that has taken the request. To be closed."""

    __slots__ = ("_connections", "_node", "_routes", "upstream")

    def __init__(self, upstream: Upstream, routes: PoolRoutes, node: str, connections: Connections) -> None:
        self.upstream, self._routes, self._node, self._connections = upstream, routes, node, connections
        routes.running[node] += 1

    def close(self) -> None:
        """The request is over; its slot is the agent's to free."""
        self._connections.release(self.upstream)
        self._routes.running[self._node] -= 1
        self._routes.users -= 1
        self._routes.look_again()


class Routes:
    """All pools."""

    def __init__(self, bus: Bus, fleet: Fleet, waiting: Waiting) -> None:
        self._bus = bus
        self._fleet = fleet
        self._waiting = waiting
        self._gateway = new_id("gw")
        self._pools: dict[str, PoolRoutes] = {}
        self._nodes: dict[str, tuple[str, str]] = {}
        self._connections = Connections(time.monotonic)
        self._doubtful: dict[str, float] = {}
        """Until when, by node."""
        self._draining = False
        fleet.on_claims = self._on_claims

    async def open(self, wanted: Wanted) -> Route:
        """A way to a container. Raises `NoContainerError`, `ResourceExhaustedError`, `RequestLostError`."""
        routes = self._pools.setdefault(wanted.pool, PoolRoutes())
        routes.users += 1
        try:
            node, upstream = await self._find(routes, wanted)
        except BaseException:
            routes.users -= 1
            raise
        return Route(upstream, routes, node, self._connections)

    async def _find(self, routes: PoolRoutes, wanted: Wanted) -> tuple[str, Upstream]:
        if not routes.held and (found := await self._try(routes, wanted, soon=False)):
            return found
        if not wanted.hold_s:
            raise self._at_once(routes, wanted)
        if self._draining:
            raise self._stopping()
        if sum(len(each.held) for each in self._pools.values()) >= wanted.max_held:
            raise self._no_container(wanted, f"{wanted.max_held} requests wait for containers already")
        turn = asyncio.Event()
        routes.held.append(turn)
        self._tell(wanted.pool, routes)
        until = time.monotonic() + wanted.hold_s
        try:
            while True:
                if self._draining:
                    raise self._stopping()
                if routes.held[0] is turn:
                    # To its end: a container may have got it, and then nobody must be told that none did.
                    if found := await self._try(routes, wanted, soon=True):
                        return found
                    self._give_up_if_hopeless(wanted)
                if (left_s := until - time.monotonic()) <= 0:
                    raise self._no_container(wanted, f"no container took the request within {wanted.hold_s:g} s")
                await self._next_look(routes, turn, left_s)
        finally:
            routes.held.remove(turn)
            routes.look_again()

    async def _next_look(self, routes: PoolRoutes, turn: asyncio.Event, left_s: float) -> None:
        try:
            async with asyncio.timeout(min(LOOK_S, left_s) if routes.held[0] is turn else left_s):
                await turn.wait()
        except TimeoutError:
            pass
        turn.clear()

    def drain(self) -> None:
        """The gateway stops: who has no container yet is told to come again, here or at another gateway."""
        self._draining = True
        for routes in self._pools.values():
            for turn in routes.held:
                turn.set()

    def close(self) -> None:
        """No request is left."""
        self._connections.close()

    def _stopping(self) -> NoContainerError:
        return NoContainerError("the gateway is stopping, and no container has taken the request yet")

    def _at_once(self, routes: PoolRoutes, wanted: Wanted) -> NoContainerError | ResourceExhaustedError:
        """What a request is told that does not wait. It counts as demand all the same: the next one may be served."""
        self._tell(wanted.pool, routes, more=1)
        if self._ready(wanted.pool):
            return ResourceExhaustedError("every container of the server has as many requests as it takes")
        return NoContainerError("no container of the server is ready")

    def _ready(self, pool: str) -> list[ContainerClaim]:
        return [claim for claim in self._fleet.claims_of(pool) if claim.state == ClaimState.READY]

    async def _try(self, routes: PoolRoutes, wanted: Wanted, *, soon: bool) -> tuple[str, Upstream] | None:
        """Ask the nodes that have ready containers, the least loaded first, or first the one of its session. `soon`:
        others wait for this one to be granted."""
        claims = self._ready(wanted.pool)
        if not claims:
            return None
        ready, ask = Counter(claim.node for claim in claims), {**wanted.ask, "soon": True} if soon else wanted.ask
        nodes = sorted(ready, key=lambda name: routes.running[name] / ready[name]) if len(ready) > 1 else list(ready)
        nodes.sort(key=self._is_doubtful)
        if wanted.session:
            home = home_of(wanted.session, claims)
            ask = {**ask, "container": home.container}
            nodes.sort(key=lambda name: name != home.node)
        for node in nodes:
            address, key = await self._node(node)
            if not address:
                continue
            try:
                ask = {**ask, "key": key}
                return node, await self._connections.ask(address, ask, wanted.first, raw=wanted.raw, whole=wanted.whole)
            except Busy:
                continue
            except Unreachable as error:
                log.info("web_node_unreachable", node=node, reason=str(error))
                self._nodes.pop(node, None)
                self._doubtful[node] = time.monotonic() + DOUBT_S
                if error.passed_on and not wanted.repeatable:
                    raise RequestLostError(f"the machine that was given the request is gone: {error}") from error
        return None

    def _is_doubtful(self, node: str) -> bool:
        return bool(self._doubtful) and self._doubtful.get(node, 0.0) > time.monotonic()

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
        if verdict is None or not verdict.failures or self._ready(wanted.pool):
            return
        if verdict.user_error:
            what = self._told(wanted, "the function's own code fails when a container starts")
            raise WebStartError(what, app=wanted.app)
        raise self._no_container(wanted, "the function's containers do not start")

    def _no_container(self, wanted: Wanted, what: str) -> NoContainerError:
        return NoContainerError(self._told(wanted, what))

    def _told(self, wanted: Wanted, what: str) -> str:
        """What a client is told: why it is so is for the owner alone."""
        why = self._waiting.text(wanted.pool)
        log.warning("web_request_not_served", pool=wanted.pool, reason=f"{what}: {why}")
        return f"{what}: {why}" if wanted.dev and why else what

    # ------------------------------------------------------------------ what is told and heard

    def _on_claims(self, pool: str) -> None:
        routes = self._pools.get(pool)
        if routes is not None:
            routes.look_again()

    def _tell(self, pool: str, routes: PoolRoutes, more: int = 0) -> None:
        held, running = len(routes.held) + more, routes.running.total()
        demand = WebDemand(pool=pool, gateway=self._gateway, held=held, running=running)
        routes.told = bool(held or running)
        self._bus.send(subjects.demand(self._bus.topology.region, pool), demand.encode())

    async def tick(self) -> None:
        """Tell every pool's demand, a last time when there is none any more."""
        self._connections.tick()
        self._doubtful = {node: until for node, until in self._doubtful.items() if until > time.monotonic()}
        for pool, routes in list(self._pools.items()):
            routes.running += Counter()  # drops nodes without requests
            busy = bool(routes.held or routes.running)
            if busy or routes.told:
                self._tell(pool, routes)
            if not busy and not routes.users:
                del self._pools[pool]


def home_of(session: str, claims: Sequence[ContainerClaim]) -> ContainerClaim:
    """The container of a session: the same one as long as it is there, whatever others come and go."""
    return max(claims, key=lambda claim: hashlib.sha256(f"{session}/{claim.container}".encode()).digest())
