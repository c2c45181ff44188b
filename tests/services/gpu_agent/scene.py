"""A scene for agent tests: a real bus, agents on it, and the parts of gateway and scheduler that they meet, by hand."""

from __future__ import annotations

import asyncio
import io
import time
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.support.eventually import eventually

from squall.ids import new_call_id, new_id, shard_of
from squall.spec import CodeRef, FunctionSpec, RetryPolicy, ScalingPolicy
from squall_bus import Bus, ConsumerSpec, Delivery
from squall_contracts import subjects
from squall_contracts.calls import DEADLINE_HEADER, AttemptFailed, CallEvent, CallRequested, CallResult, CancelRequested
from squall_contracts.functions import SPECS, FunctionRecord, PoolRecord, pool_id, pool_key
from squall_contracts.letters import DeadLetter
from squall_contracts.nodes import CONTAINERS, ClaimState, ContainerClaim, claim_key
from squall_gpu_agent.backend import Backend
from squall_gpu_agent.service import run_with
from squall_gpu_agent.settings import AgentSettings
from squall_service.clock import Clock, SystemClock
from squall_service.run import Running, Service, ServiceContext, start

WORKSPACE, APP = "ws", "ap-1"
TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


def bundle(files: dict[str, bytes]) -> bytes:
    """A code bundle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@dataclass
class Scene:
    """What a test has in hand."""

    bus: Bus
    blobs: Path
    tmp: Path
    replies: dict[str, list[CallResult]] = field(default_factory=dict)
    ordinal: int = 0

    @property
    def region(self) -> str:
        return self.bus.topology.region

    # ------------------------------------------------------------------ agents

    @asynccontextmanager
    async def agent(
        self, backend: Backend, node: str = "node-a", *, clock: Clock | None = None, **settings: Any
    ) -> AsyncIterator[Running]:
        """An agent; drained when the block ends."""
        given: dict[str, Any] = {
            "node": node,
            "data": str(self.tmp / node),
            "blob_dir": str(self.blobs),
            "cpu": 8,
            "memory_mib": 8192,
            "stop_grace_s": 0.2,
            "drain_s": 5,
            **settings,
        }

        async def main(context: ServiceContext[AgentSettings]) -> None:
            await run_with(context.settings, self.bus, context, backend)

        service = Service(name="gpu-agent", main=main, settings=AgentSettings(**given))
        async with start(service, clock=clock) as running:
            yield running

    # ------------------------------------------------------------------ what the gateway does

    async def function(
        self, name: str = "f", *, code: bytes = b"# user code\n", ephemeral: bool = False, **spec: Any
    ) -> FunctionRecord:
        """A published function with its code bundle in the blob folder."""
        files = bundle({"root/app.py": code})
        digest = self.blob(files)
        declared = FunctionSpec(
            name=name, code=CodeRef(bundle_sha256=digest, module="app", qualname=name, bundle_bytes=len(files))
        )
        record = FunctionRecord(
            function_id=new_id("fu").lower(),
            app_id=APP,
            app_name="app",
            workspace=WORKSPACE,
            environment="main",
            version=1,
            ephemeral=ephemeral,
            spec=replace(declared, **spec),
            created_at=time.time(),
        )
        await self.bus.kv(SPECS).put(record.function_id, record.encode())
        return record

    def blob(self, content: bytes) -> str:
        """Put a blob into the shared folder, as the gateway does; its digest."""
        digest = sha256(content).hexdigest()
        path = self.blobs / digest[:2] / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return digest

    async def pool(self, function: FunctionRecord, parameters: str = "") -> str:
        """The function's pool, with its consumers."""
        pool = pool_id(function.function_id, parameters)
        record = PoolRecord(
            pool=pool, function_id=function.function_id, app_id=APP, workspace=WORKSPACE, parameters=parameters
        )
        await self.bus.kv(SPECS).put(pool_key(pool), record.encode())
        for shard in range(self.bus.topology.shards):
            spec = ConsumerSpec(name=pool, filter_subject=subjects.calls_of_pool(self.region, shard, pool))
            await self.bus.ensure_consumer(subjects.work_stream(self.region, shard), spec)
        return pool

    def request(self, pool: str, function: FunctionRecord, payload: bytes = b"", **more: Any) -> CallRequested:
        """An input, not published yet."""
        call = more.pop("call", None) or new_call_id(self.bus.topology.shards)
        now = time.time()
        return CallRequested(
            call=call,
            pool=pool,
            function=function.function_id,
            workspace=WORKSPACE,
            app=APP,
            **{
                "index": 0,
                "kind": "remote",
                "accepted_at": now,
                "deadline": now + 3600,
                "traceparent": TRACE,
                "payload": payload,
                "reply_to": f"reply.{call}",
                **more,
            },
        )

    async def call(self, pool: str, function: FunctionRecord, payload: bytes = b"", **more: Any) -> CallRequested:
        """Accept an input."""
        request = self.request(pool, function, payload, **more)
        await self.accept(request)
        return request

    async def accept(self, request: CallRequested, data: bytes | None = None) -> None:
        """Store an input in the journal, or `data` in its place."""
        subject = subjects.call(self.region, request.pool, request.call, request.index)
        msg_id = f"{request.call}.{request.index}"
        headers = {DEADLINE_HEADER: f"{request.deadline:.3f}"}
        await self.bus.publish(subject, request.encode() if data is None else data, msg_id=msg_id, headers=headers)

    async def record(self, result: CallResult) -> bytes:
        """Record a result as somebody else."""
        data = result.encode()
        subject = subjects.result(self.region, result.workspace, result.call, result.index)
        await self.bus.publish(subject, data, msg_id=f"{result.call}.{result.index}.{result.attempt or result.outcome}")
        return data

    def cancel(self, request: CallRequested, *, terminate: bool = False) -> None:
        """Tell the agents."""
        message = CancelRequested(call=request.call, pool=request.pool, terminate_containers=terminate)
        self.bus.send(subjects.cancel(self.region, request.pool), message.encode())

    # ------------------------------------------------------------------ what the scheduler does

    async def propose(self, pool: str, function: FunctionRecord, node: str = "node-a", **more: Any) -> str:
        """A claim for one container; its key."""
        ordinal, self.ordinal = self.ordinal, self.ordinal + 1
        now = time.time()
        claim = ContainerClaim(
            pool=pool,
            ordinal=ordinal,
            container=new_id("ta"),
            node=node,
            function_id=function.function_id,
            app_id=APP,
            workspace=WORKSPACE,
            **{
                "state": ClaimState.PROPOSED,
                "created_at": now,
                "updated_at": now,
                "cpu": 0.125,
                "memory_mib": 128,
                **more,
            },
        )
        key = claim_key(pool, ordinal)
        await self.bus.kv(CONTAINERS).create(key, claim.encode())
        return key

    async def claim(self, key: str) -> ContainerClaim | None:
        """A claim as it is now."""
        entry = await self.bus.kv(CONTAINERS).get(key)
        return None if entry is None else ContainerClaim.decode(entry.value)

    async def claim_in(self, key: str, *states: str) -> ContainerClaim:
        """Wait until a claim is in one of these states."""

        async def check() -> list[ContainerClaim]:
            claim = await self.claim(key)
            return [claim] if claim is not None and claim.state in states else []

        return (await eventually(check, within_s=20))[0]

    async def gone(self, key: str) -> None:
        """Wait until a claim is deleted."""

        async def check() -> bool:
            return await self.claim(key) is None

        await eventually(check)

    async def over(self, key: str) -> None:
        """Wait until its agent is done with a claim: it is deleted, or tells why there will be no container."""

        async def check() -> bool:
            claim = await self.claim(key)
            return claim is None or claim.state == ClaimState.FAILED

        await eventually(check)

    async def drain(self, key: str) -> None:
        """Ask for a drain, as scale-down does."""
        entry = await self.bus.kv(CONTAINERS).get(key)
        assert entry is not None
        claim = replace(ContainerClaim.decode(entry.value), state=ClaimState.DRAINING)
        await self.bus.kv(CONTAINERS).update(key, claim.encode(), entry.revision)

    async def ready(
        self, name: str = "f", node: str = "node-a", *, containers: int = 1, **spec: Any
    ) -> tuple[str, FunctionRecord]:
        """A function with ready containers: its pool and record."""
        function = await self.function(name, **spec)
        pool = await self.pool(function)
        keys = [await self.propose(pool, function, node) for _ in range(containers)]
        for key in keys:
            await self.claim_in(key, ClaimState.READY)
        return pool, function

    # ------------------------------------------------------------------ what can be seen

    async def result(self, request: CallRequested, *, within_s: float = 30.0) -> CallResult:
        """The recorded result, once it is there."""

        async def check() -> list[CallResult]:
            result = await self.recorded(request)
            return [result] if result is not None else []

        return (await eventually(check, within_s=within_s))[0]

    async def recorded(self, request: CallRequested) -> CallResult | None:
        """The recorded result, if there is one."""
        stream = subjects.results_stream(self.region, shard_of(request.call))
        subject = subjects.result(self.region, WORKSPACE, request.call, request.index)
        stored = await self.bus.get_last(stream, subject)
        return None if stored is None else CallResult.decode(stored.data)

    async def attempts(self, request: CallRequested) -> list[AttemptFailed]:
        """Counted failures."""
        stream = subjects.attempts_stream(self.region, shard_of(request.call))
        subject = subjects.attempts(self.region, WORKSPACE, request.call, request.index)
        return [AttemptFailed.decode(stored.data) async for stored in self.bus.read(stream, subject)]

    async def count(self, request: CallRequested, *, retry_at: float) -> None:
        """Count a failed attempt of somebody else's."""
        subject = subjects.attempts(self.region, WORKSPACE, request.call, request.index)
        failed = AttemptFailed(request.call, request.index, "1-other", "user", 1, 0, time.time(), retry_at)
        await self.bus.publish(subject, failed.encode())

    async def letters(self) -> list[DeadLetter]:
        """Every dead letter."""
        wanted = subjects.letters_of(self.region, WORKSPACE)
        stream = subjects.letters_stream(self.region)
        return [DeadLetter.decode(stored.data) async for stored in self.bus.read(stream, wanted)]

    async def events(self, request: CallRequested) -> list[str]:
        """Names of the events so far."""
        await self.bus.flush()
        stream = subjects.events_stream(self.region, shard_of(request.call))
        subject = subjects.event(self.region, WORKSPACE, request.call, request.index)
        return [CallEvent.decode(stored.data).event async for stored in self.bus.read(stream, subject)]

    async def queued(self, pool: str) -> int:
        """Inputs of a pool that are waiting or leased."""
        total = 0
        for shard in range(self.bus.topology.shards):
            info = await self.bus.consumer_info(subjects.work_stream(self.region, shard), pool)
            assert info is not None
            total += info.pending + info.ack_pending
        return total

    async def queues(self, pool: str, number: int) -> None:
        """Wait until so many inputs of a pool are queued or leased."""

        async def check() -> bool:
            return await self.queued(pool) == number

        await eventually(check)  # an acknowledgement that is lost with the server costs a lease

    async def emptied(self, pool: str) -> None:
        """Wait until nothing of a pool is queued or leased."""
        await self.queues(pool, 0)

    async def reply(self, request: CallRequested) -> CallResult:
        """What the waiting gateway was told."""
        return (await eventually(lambda: self.replies.get(request.call, [])))[0]

    async def told(self, request: CallRequested, event: str) -> None:
        """Wait for an event."""

        async def check() -> bool:
            return event in await self.events(request)

        await eventually(check)

    async def deliver_once(self, pool: str, request: CallRequested) -> None:
        """Lease an input as another agent and give it back, so that its next delivery is not the first."""
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        stream = subjects.work_stream(self.region, shard_of(request.call))
        async with await self.bus.pull(stream, pool, arrived.put_nowait) as puller:
            puller.want(1)
            async with asyncio.timeout(5):
                (await arrived.get()).nak()


class ShiftedClock(SystemClock):
    """The machine's clock, with jumps: what an agent sees after it was stopped, or after its machine slept."""

    def __init__(self) -> None:
        self.wall_s = self.monotonic_s = 0.0

    def pause(self, seconds: float) -> None:
        """The process did not run for so long."""
        self.wall_s += seconds
        self.monotonic_s += seconds

    def sleep_machine(self, seconds: float) -> None:
        """The machine was suspended: its monotonic clock did not run either."""
        self.wall_s += seconds

    def now(self) -> float:
        return super().now() + self.wall_s

    def monotonic(self) -> float:
        return super().monotonic() + self.monotonic_s


FAST_RETRY = RetryPolicy(max_retries=2, initial_delay_s=0.05, max_delay_s=1)
TWO_AT_ONCE = ScalingPolicy(max_inputs=2)
