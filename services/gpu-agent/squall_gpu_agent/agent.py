"""The agent as an object: its parts, its loops, its drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from squall.errors import SquallError
from squall_bus import Bus
from squall_contracts.calls import CancelRequested
from squall_contracts.nodes import CONTAINERS, ContainerClaim
from squall_gpu_agent.attempts import AttemptParts, Attempts
from squall_gpu_agent.backend import Backend
from squall_gpu_agent.buckets.mounts import Buckets, Reach
from squall_gpu_agent.cancels import CancelListener, Cancels
from squall_gpu_agent.capacity import Capacity
from squall_gpu_agent.claims import Claims
from squall_gpu_agent.commands import Commands
from squall_gpu_agent.drained import Drained
from squall_gpu_agent.events import Events
from squall_gpu_agent.execution import Execution
from squall_gpu_agent.facts import NODE_FACT_S, STATS_S, NodeFacts, Stats
from squall_gpu_agent.gpus import Gpus, Nothing, Simulated, Source
from squall_gpu_agent.history import History
from squall_gpu_agent.identity import Identity
from squall_gpu_agent.items import ItemStreams
from squall_gpu_agent.launch import Launcher
from squall_gpu_agent.leases import TICK_S, Leases
from squall_gpu_agent.logs import Logs
from squall_gpu_agent.metering import Metering
from squall_gpu_agent.metrics import Metrics
from squall_gpu_agent.nvml import Nvml
from squall_gpu_agent.outbox import Outbox
from squall_gpu_agent.pending import PendingCalls
from squall_gpu_agent.poisoned import Poisoned
from squall_gpu_agent.pool import PoolWork
from squall_gpu_agent.pools import Pools
from squall_gpu_agent.preemption import EXIT_S, NOTICE_LOOK_S, Notice
from squall_gpu_agent.records import Records
from squall_gpu_agent.settings import AgentSettings, networks
from squall_gpu_agent.settlement import Settlement
from squall_gpu_agent.splice import Splice
from squall_gpu_agent.tasks import Tasks
from squall_gpu_agent.tenancy import Tenancy, TenancyParts
from squall_gpu_agent.tokens import ContainerTokens
from squall_gpu_agent.volumes.mounts import Mounts
from squall_gpu_agent.volumes.trees import Trees
from squall_gpu_agent.watermarks import Watermarks
from squall_gpu_agent.web.door import Door
from squall_gpu_agent.web.lines import Lines
from squall_service.blobs import Blobs, FolderStore, GatewayStore
from squall_service.bundles import Bundles
from squall_service.clock import Clock
from squall_service.run import ServiceContext
from squall_service.sealing import Sealer
from squall_service.secrets import Secrets
from squall_service.telemetry import log

SYNC_S = 30.0
SETTLE_S = 5.0
"""How long results of inputs that have ended may still take to be recorded when the agent stops."""
FLUSH_S = 3.0
KEEP_LISTS_S = 1800.0
"""Far shorter than the grace period of the gateway's `volume_grace_s`."""
SWEEP_S = 300.0


class Agent:
    """Everything of one agent. Made by `build`."""

    def __init__(
        self, settings: AgentSettings, bus: Bus, clock: Clock, metrics: Metrics, group: asyncio.TaskGroup
    ) -> None:
        self.settings = settings
        self.bus = bus
        self.clock = clock
        self.metrics = metrics
        self.identity = Identity(node=settings.node_name(), region=bus.topology.region, shards=bus.topology.shards)
        self.tasks = Tasks(group)
        self.records = Records(bus)
        self.outbox = Outbox(bus)
        self.leases = Leases(clock, self.tasks)
        self.cancels = Cancels(clock)
        self.logs = Logs(bus, self.identity, clock)
        self.metering = Metering(self.outbox, self.identity, clock, metrics)
        self.events = Events(self.outbox, self.identity, clock)
        self.blobs = Blobs(_store(settings))
        self.tokens = ContainerTokens(bus, self.identity, clock)
        self.stats = Stats(bus, self.identity, clock, lambda: self.pools)
        self.lines = Lines()
        self._build_calls()

    def _build_calls(self) -> None:
        bus, identity, clock = self.bus, self.identity, self.clock
        history = History(bus, identity, Watermarks(bus, identity, self.tasks))
        self.settlement = Settlement(bus, identity, clock, history=history, events=self.events)
        items = ItemStreams(bus, identity, self.blobs)
        self.execution = Execution(clock, self.blobs, items, self.cancels, self.settings.stop_grace_s)
        parts = AttemptParts(
            clock=clock,
            history=history,
            execution=self.execution,
            settlement=self.settlement,
            events=self.events,
            blobs=self.blobs,
            logs=self.logs,
            metering=self.metering,
            leases=self.leases,
            cancels=self.cancels,
        )
        poisoned = Poisoned(
            clock=clock, leases=self.leases, settlement=self.settlement, workspace_of=self._workspace_of
        )
        work = PoolWork(
            bus=bus,
            identity=identity,
            clock=clock,
            tasks=self.tasks,
            leases=self.leases,
            conduct=Attempts(parts).conduct,
            poisoned=poisoned.settle,
            changed=self.stats.changed,
            prefetch_s=self.settings.prefetch_ms / 1000,
        )
        self.pools = Pools(work)
        self.door = Door(self.settings, self.pools, self.lines, self.tasks)

    @classmethod
    async def build(
        cls,
        settings: AgentSettings,
        bus: Bus,
        context: ServiceContext[AgentSettings],
        *,
        backend: Backend,
        group: asyncio.TaskGroup,
        sockets: Path,
    ) -> Agent:
        """The agent, wired, nothing running yet."""
        agent = cls(settings, bus, context.clock, Metrics(context.telemetry.meter("squall.gpu_agent")), group)
        gpus = Gpus(_source(settings), settings.gpus, settings.gpu_read_s)
        await gpus.read(frozenset())
        agent.capacity = Capacity(
            cpu=settings.cores(),
            memory_mib=settings.memory(),
            max_containers=settings.max_containers,
            gpus=gpus,
            capabilities=await backend.probe(),
        )
        agent.drained = Drained(Path(settings.data), agent.capacity)
        await agent.drained.recall()
        agent.metrics.gpus = agent.capacity.gpu_states
        agent.facts = NodeFacts(
            bus, agent.identity, context.clock, agent.capacity, settings.zone, settings.can_be_taken_away()
        )
        agent.facts.web = lambda: (agent.door.address, agent.door.key)
        agent.facts.images = backend.images
        agent._backend = backend
        agent.notice = Notice(settings, context.clock)
        agent.socket_path = sockets / "api.sock"
        agent._build_containers(backend)
        return agent

    capacity: Capacity
    drained: Drained
    facts: NodeFacts
    notice: Notice
    socket_path: Path
    mounts: Mounts
    _backend: Backend

    def _build_containers(self, backend: Backend) -> None:
        self.mounts = Mounts(self._trees(), self.settings.gateway_url, self.tasks)
        bundles = Bundles(Path(self.settings.data) / "bundles", self.blobs)
        secrets = Secrets(self.bus, Sealer(self.settings.secrets_key))
        launcher = Launcher(
            backend,
            bundles,
            self.tokens,
            self.logs,
            secrets=secrets,
            clock=self.clock,
            socket_path=self.socket_path,
            lines=self.lines,
            mounts=self.mounts,
            buckets=self._buckets(secrets),
        )
        bucket = self.bus.kv(CONTAINERS)
        pending = PendingCalls(
            self.bus,
            self.identity,
            self.clock,
            leases=self.leases,
            settlement=self.settlement,
            serves=self._serves,
        )
        parts = TenancyParts(
            claims=bucket,
            clock=self.clock,
            records=self.records,
            capacity=self.capacity,
            launcher=launcher,
            logs=self.logs,
            pools=self.pools,
            pending=pending,
            metrics=self.metrics,
        )

        def make(key: str, claim: ContainerClaim, revision: int) -> Tenancy:
            return Tenancy(key, claim, revision, parts)

        self.claims = Claims(bucket, self.identity.node, self.tasks, make)

    def _buckets(self, secrets: Secrets) -> Buckets:
        settings = self.settings
        isolates = self.capacity.capabilities.isolates
        reach = Reach(networks(settings.sandbox_allowed), networks(settings.sandbox_refused), settings.sandbox_network)
        spool = Path(settings.data) / "buckets"
        return Buckets(
            secrets, self.socket_path.parent, spool, self.tasks, lambda spec: reach if isolates(spec) else None
        )

    def _trees(self) -> Trees:
        return Trees(Path(self.settings.data) / "volumes", self.blobs, self.settings.volume_cache_mib)

    # ------------------------------------------------------------------ life

    @asynccontextmanager
    async def serve(self, group: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Takes claims and calls while the block runs; drained when it has ended."""
        await self.tokens.revoke_left_over()
        cancels = await CancelListener(self.bus, self.identity, self.cancels, self._on_cancel).listen()
        commands = await self._commands().listen()
        splice = Splice(self.settings.gateway_url, self.lines, self.tasks)
        async with splice.listen(self.socket_path), self.door.listen(self.socket_path.parent):
            loops = await self._start_loops(group)
            try:
                yield
                await self._drain()
            finally:
                for loop in loops:
                    loop.cancel()
                await cancels.close()
                await commands.close()

    def _commands(self) -> Commands:
        return Commands(
            self.bus,
            self.identity,
            drained=self.drained,
            facts=self.facts,
            claims=self.claims,
            tasks=self.tasks,
            backend=self._backend,
            clock=self.clock,
        )

    async def _start_loops(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        await self.facts.publish()
        synced = asyncio.Event()
        loops = [
            group.create_task(self._every(TICK_S, self._tick)),
            group.create_task(self._every(STATS_S, self._tell)),
            group.create_task(self._renew_fact()),
            group.create_task(self._read_gpus()),
            group.create_task(self._sweep_images()),
            group.create_task(self._keep_volume_lists()),
            group.create_task(self.claims.watch(synced.set)),
        ]
        if self.notice.expected:
            loops.append(group.create_task(self._heed_notices()))
        async with asyncio.timeout(SYNC_S):
            await synced.wait()
        return loops

    async def _every(self, interval_s: float, work: Callable[[], None]) -> None:
        while True:
            work()
            await self.clock.sleep(interval_s)

    def _tick(self) -> None:
        self.leases.tick()
        for held in self.execution.told_started():
            self.events.tell(held, "started")

    def _tell(self) -> None:
        self.stats.publish()
        self.metering.tick()
        self.pools.probe()

    async def _renew_fact(self) -> None:
        while True:
            await self.clock.sleep(NODE_FACT_S)
            await self.facts.publish()

    async def _keep_volume_lists(self) -> None:
        while True:
            await self.clock.sleep(KEEP_LISTS_S)
            await self.mounts.keep_lists()

    async def _sweep_images(self) -> None:
        while True:
            await self.clock.sleep(SWEEP_S)
            try:
                await self._backend.sweep_images(self.clock.now())
            except (OSError, SquallError) as error:
                log.warning("images_not_swept", reason=str(error))

    async def _read_gpus(self) -> None:
        while interval_s := self.capacity.gpus.read_again_s:
            await self.clock.sleep(interval_s)
            different = await self.capacity.gpus.read(frozenset(self.capacity.gpus_used))
            for device in different:
                if device.failure:
                    self.claims.device_failed(device.uuid, device.failure)
            if different:
                await self.facts.publish()

    async def _heed_notices(self) -> None:
        """Once the machine is to be taken away: nothing new, and what cannot finish in time runs elsewhere."""
        while True:
            await self.clock.sleep(NOTICE_LOOK_S)
            leaving_at = self.notice.leaving_at()
            if leaving_at == self.capacity.leaving_at:
                continue
            new, self.capacity.leaving_at = not self.capacity.leaving_at, leaving_at
            await self.facts.publish()
            if leaving_at and new:
                await self.claims.drain(self.notice.time_to_finish_s(leaving_at), EXIT_S)
                log.info("node_empty_before_preemption", left_s=round(leaving_at - self.clock.now(), 1))

    async def _drain(self) -> None:
        """Take nothing new, hand back what has not started, finish what runs, and leave no trace."""
        self.capacity.draining = True
        await self.facts.publish()
        await self.claims.drain(self.notice.drain_s())
        await self.pools.close()
        await self.tasks.finish(SETTLE_S)
        await self.tokens.revoke()
        self.metering.tick()
        self.outbox.flush()
        await self.bus.flush(FLUSH_S)
        await self.facts.remove()

    # ------------------------------------------------------------------ small hooks

    def _on_cancel(self, cancel: CancelRequested) -> None:
        for held in self.execution.cancel(cancel.pool, cancel.call, cancel.index):
            if cancel.terminate_containers and held.container is not None:
                held.container.container.kill("terminated by a cancel")
        pool = self.pools.get(cancel.pool)
        if pool is not None:
            pool.on_cancelled(cancel.call, cancel.index)

    def _serves(self, pool: str) -> bool:
        return self.claims.serves(pool)

    async def _workspace_of(self, pool: str) -> str:
        return (await self.records.pool(pool)).workspace


def _source(settings: AgentSettings) -> Source:
    if settings.gpus == "none":
        return Nothing()
    return Simulated(settings.simulated_gpus, settings.node_name()) if settings.simulated_gpus else Nvml()


def _store(settings: AgentSettings) -> FolderStore | GatewayStore:
    if settings.blob_dir:
        return FolderStore(Path(settings.blob_dir))
    return GatewayStore(settings.gateway_url, settings.token)
