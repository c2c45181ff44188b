"""A world for control-plane tests: a gateway and agents played by hand on a real bus."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.support.eventually import eventually
from tests.support.nats_server import NatsServer

from squall.ids import new_call_id, shard_of
from squall.spec import CodeRef, FunctionSpec, GpuRequest, Resources, ScalingPolicy, digest, to_wire
from squall_autoscaler import service as autoscaler_service
from squall_autoscaler.settings import AutoscalerSettings
from squall_bus import Bus, BusSettings, ConsumerSpec, connect
from squall_contracts import subjects, topology
from squall_contracts.calls import DEADLINE_HEADER, CallRequested, CallResult
from squall_contracts.functions import APPS, SPECS, AppRecord, FunctionRecord, PoolRecord, pool_id, pool_key
from squall_contracts.nodes import (
    CONTAINERS,
    NODES,
    ClaimState,
    ContainerClaim,
    ContainerStats,
    GpuFact,
    NodeFact,
    claim_key,
)
from squall_contracts.scaling import DESIRED, VERDICTS, Desired, Verdict
from squall_scheduler import service as scheduler_service
from squall_scheduler.settings import SchedulerSettings
from squall_service.clock import Clock, SystemClock
from squall_service.run import Running, Service, ServiceContext, start

SHARDS = 2
WORKSPACE = "main"


@asynccontextmanager
async def a_bus(server: NatsServer, name: str = "test", shards: int = SHARDS) -> AsyncIterator[Bus]:
    """A connection with the topology in place."""
    layout = topology.build("local", shards)
    async with connect(BusSettings(url=server.url, name=name, shards=shards), layout) as bus:
        await bus.ensure_topology()
        yield bus


@asynccontextmanager
async def a_world(folder: Path, shards: int = SHARDS) -> AsyncIterator[World]:
    """A server of its own, empty."""
    async with NatsServer(folder / "nats") as server, a_bus(server, shards=shards) as bus:
        yield World(bus=bus, server=server)


@dataclass
class World:
    """What gateway and agents would do, as plain methods."""

    bus: Bus
    server: NatsServer
    clock: Clock = field(default_factory=SystemClock)

    # --- services

    @asynccontextmanager
    async def scheduler(self, **settings: Any) -> AsyncIterator[Running]:
        """A scheduler in this process, on this bus."""
        given = SchedulerSettings(**settings)

        async def main(context: ServiceContext[SchedulerSettings]) -> None:
            await scheduler_service.run(given, self.bus, context)

        async with start(Service(name="scheduler", main=main, settings=given, grace_s=5), clock=self.clock) as running:
            yield running

    @asynccontextmanager
    async def autoscaler(self, **settings: Any) -> AsyncIterator[Running]:
        """An autoscaler in this process, on this bus."""
        given = AutoscalerSettings(**settings)

        async def main(context: ServiceContext[AutoscalerSettings]) -> None:
            await autoscaler_service.run(given, self.bus, context)

        async with start(Service(name="autoscaler", main=main, settings=given, grace_s=5), clock=self.clock) as running:
            yield running

    # --- the gateway's part

    async def function(self, name: str = "f", *, app: str = "ap-1", version: int = 1, **spec: Any) -> str:
        """Publish a function and its pool; the pool's id."""
        declared = a_spec(name, **spec)
        function_id = "fu-" + digest([app, version, name, to_wire(declared)])[:20]
        now = self.clock.now()
        record = FunctionRecord(
            function_id=function_id,
            app_id=app,
            app_name="app",
            workspace=WORKSPACE,
            environment="main",
            version=version,
            ephemeral=False,
            spec=declared,
            created_at=now,
        )
        await self.bus.kv(SPECS).put(function_id, record.encode())
        await self.point(app, {name: function_id}, version)
        pool = pool_id(function_id)
        pool_record = PoolRecord(pool=pool, function_id=function_id, app_id=app, workspace=WORKSPACE, created_at=now)
        await self.bus.kv(SPECS).put(pool_key(pool), pool_record.encode())
        for shard in range(self.bus.topology.shards):
            filter_subject = subjects.calls_of_pool("local", shard, pool)
            spec_of_consumer = ConsumerSpec(name=pool, filter_subject=filter_subject)
            await self.bus.ensure_consumer(subjects.work_stream("local", shard), spec_of_consumer)
        return pool

    async def point(self, app: str, functions: dict[str, str], version: int = 1, state: str = "deployed") -> None:
        """Add to an app, or make its name point at other versions, or stop it."""
        entry = await self.bus.kv(APPS).get(app)
        old = {} if entry is None else dict(AppRecord.decode(entry.value).functions)
        now = self.clock.now()
        record = AppRecord(
            app_id=app,
            name="app",
            workspace=WORKSPACE,
            environment="main",
            state=state,
            version=version,
            functions={**old, **functions},
            created_at=now,
            updated_at=now,
        )
        await self.bus.kv(APPS).put(app, record.encode())

    async def call(
        self, pool: str, *, call: str = "", index: int = 0, deadline: float | None = None, reply_to: str | None = None
    ) -> str:
        """Accept a call; its id."""
        call = call or new_call_id(self.bus.topology.shards)
        now = self.clock.now()
        deadline = now + 3600 if deadline is None else deadline
        request = CallRequested(
            call=call,
            index=index,
            pool=pool,
            function="fu-1",
            workspace=WORKSPACE,
            app="ap-1",
            kind="spawn",
            accepted_at=now,
            deadline=deadline,
            reply_to=reply_to,
        )
        headers = {DEADLINE_HEADER: f"{deadline:.3f}"}
        await self.bus.publish(
            subjects.call("local", pool, call, index),
            request.encode(),
            headers=headers,
            msg_id=f"{call}.{index}",
            ttl_s=7200,
        )
        return call

    # --- the agents' part

    async def node(self, node: str = "node-a", **facts: Any) -> None:
        """A node tells what it has."""
        values: dict[str, Any] = {"cpu": 4.0, "memory_mib": 4096, "at": self.clock.now(), **facts}
        gpus = tuple(GpuFact(uuid=f"{node}-{n}", type=t, memory_mib=1) for n, t in enumerate(values.pop("gpus", ())))
        fact = NodeFact(node=node, region="local", gpus=gpus, **values)
        await self.bus.kv(NODES).put(node, fact.encode())

    async def move(self, claim: ContainerClaim, state: str, **changes: Any) -> ContainerClaim:
        """An agent moves a claim on."""
        key = claim_key(claim.pool, claim.ordinal)
        entry = await self.bus.kv(CONTAINERS).get(key)
        assert entry is not None
        moved = replace(claim, state=state, updated_at=self.clock.now(), **changes)
        await self.bus.kv(CONTAINERS).update(key, moved.encode(), entry.revision)
        return moved

    async def gone(self, claim: ContainerClaim) -> None:
        """An agent deletes the claim of a container that has ended."""
        await self.bus.kv(CONTAINERS).delete(claim_key(claim.pool, claim.ordinal))

    async def all_ready(self, pool: str) -> list[ContainerClaim]:
        """Every proposed container of the pool becomes ready."""
        return [
            await self.move(claim, ClaimState.READY)
            for claim in await self.claims(pool)
            if claim.state == ClaimState.PROPOSED
        ]

    def stats_rows(self, node: str, rows: list[tuple[ContainerClaim, int, float]]) -> None:
        """A node tells what each container does: how many inputs it runs, or since when it is idle."""
        told = [[c.container, c.pool, running, 1, idle_since, c.state] for c, running, idle_since in rows]
        message = ContainerStats(node=node, at=self.clock.now(), containers=told)
        self.bus.send(subjects.stats("local", node), message.encode())

    async def eventually_seen(self, node: str) -> None:
        """Every watcher of this connection has been given what was written so far."""
        await self.bus.kv(NODES).get(node)
        await self.bus.flush()

    def stats(self, node: str, claims: list[ContainerClaim], *, running: int = 0, idle_since: float = 0.0) -> None:
        """A node tells what these containers do, each the same."""
        message = self.told(node, claims, running=running, idle_since=idle_since)
        self.bus.send(subjects.stats("local", node), message.encode())

    def told(
        self, node: str, claims: list[ContainerClaim], *, running: int = 0, idle_since: float = 0.0
    ) -> ContainerStats:
        """The message in which a node tells what these containers do, each the same."""
        rows: list[list[Any]] = [[c.container, c.pool, running, 1, idle_since, c.state] for c in claims]
        return ContainerStats(node=node, at=self.clock.now(), containers=rows)

    async def finish(self, pool: str, call: str, index: int = 0, *, acknowledge: bool = True) -> None:
        """Record a result, and take the call off the queue."""
        result = CallResult(call=call, index=index, workspace=WORKSPACE, outcome="succeeded", attempt="1-a", pool=pool)
        await self.bus.publish(
            subjects.result("local", WORKSPACE, call, index), result.encode(), msg_id=f"{call}.{index}.1-a"
        )
        if acknowledge:
            await eventually(lambda: self.taken_off(pool, call, index))

    async def queued(self, call: str) -> bool:
        """Whether a call has got into its queue."""
        info = await self.bus.stream_info(subjects.work_stream("local", shard_of(call)), ">")
        return any(f".{call}." in subject for subject in info.subjects)

    async def taken_off(self, pool: str, call: str, index: int = 0) -> int:
        """Remove an input from its queue, once it has got there."""
        stream = subjects.work_stream("local", shard_of(call))
        return await self.bus.purge(stream, subjects.call("local", pool, call, index))

    # --- what is there

    async def desire(self, pool: str, count: int) -> None:
        """An autoscaler's decision."""
        desired = Desired(pool=pool, count=count, reason="test", decision="de-1", decided_at=self.clock.now())
        await self.bus.kv(DESIRED).put(pool, desired.encode())

    async def desired(self, pool: str) -> Desired | None:
        entry = await self.bus.kv(DESIRED).get(pool)
        return None if entry is None else Desired.decode(entry.value)

    async def desired_count(self, pool: str) -> int:
        desired = await self.desired(pool)
        return desired.count if desired else 0

    async def claims(self, pool: str, *states: str) -> list[ContainerClaim]:
        """Claims of the pool, in the given states or all."""
        entries = await self.bus.kv(CONTAINERS).entries(f"{pool}.")
        found = [ContainerClaim.decode(entry.value) for entry in entries]
        return sorted((c for c in found if not states or c.state in states), key=lambda c: c.ordinal)

    async def verdict(self, pool: str) -> Verdict | None:
        entry = await self.bus.kv(VERDICTS).get(pool)
        return None if entry is None else Verdict.decode(entry.value)

    async def result(self, call: str, index: int = 0) -> CallResult | None:
        stream = subjects.results_stream("local", shard_of(call))
        stored = await self.bus.get_last(stream, subjects.result("local", WORKSPACE, call, index))
        return None if stored is None else CallResult.decode(stored.data)


def a_spec(name: str = "f", **given: Any) -> FunctionSpec:
    """A function's declaration; scaling and resource fields may be given flat."""
    scaling = {k: given.pop(k) for k in list(given) if k in ScalingPolicy.__dataclass_fields__}
    resources = {k: given.pop(k) for k in list(given) if k in Resources.__dataclass_fields__}
    if "gpus" in resources:
        resources["gpus"] = tuple(GpuRequest(type=t) if isinstance(t, str) else t for t in resources["gpus"])
    return FunctionSpec(
        name=name,
        code=CodeRef(bundle_sha256="0" * 64, module="app", qualname=name),
        scaling=ScalingPolicy(**scaling),
        resources=Resources(**resources),
        **given,
    )
