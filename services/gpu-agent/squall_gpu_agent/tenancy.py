"""A tenancy: one container on this node, from its claim to its end. Moves the claim on by compare-and-set.

Owns the order: book the room, start, take inputs, drain, stop, free the room, delete the claim. The claim in the bucket
is the container's right to exist: when it is gone, or somebody else's, the container goes too.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from squall.errors import SquallError
from squall_bus import BusError, KeyValue, WrongRevision
from squall_contracts import spans
from squall_contracts.functions import FunctionRecord
from squall_contracts.nodes import ClaimState, ContainerClaim
from squall_gpu_agent import results
from squall_gpu_agent.backend import COMMIT_S, EXIT_GRACE_S, Exit, Log, StartFailed, StartFailureKind
from squall_gpu_agent.capacity import Capacity, smaller
from squall_gpu_agent.containers import PooledContainer
from squall_gpu_agent.launch import Launched, Launcher, has_web, phase_rows
from squall_gpu_agent.logs import Logs
from squall_gpu_agent.metrics import Metrics
from squall_gpu_agent.pending import PendingCalls
from squall_gpu_agent.policy.acceptance import Refuse
from squall_gpu_agent.policy.retry import MOST_KILLED_STARTS
from squall_gpu_agent.pools import Pools
from squall_gpu_agent.records import Records
from squall_service.clock import Clock
from squall_service.failpoints import failpoint
from squall_service.telemetry import log

CRASHED_EARLY_S = 10.0
"""A container that dies so soon without having served anything counts as a failed start: the scheduler backs off."""

LEAVING_COMMIT_S = 15.0
"""With 25 s for inputs and 30 s for `@exit` hooks less than the time in which the agent must have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenancyParts:
    """What a tenancy needs, built once in service.py."""

    claims: KeyValue
    clock: Clock
    records: Records
    capacity: Capacity
    launcher: Launcher
    logs: Logs
    pools: Pools
    pending: PendingCalls
    metrics: Metrics


class Tenancy:
    """One container of this node."""

    def __init__(self, key: str, claim: ContainerClaim, revision: int, parts: TenancyParts) -> None:
        self.key = key
        self.claim = claim
        self.revision = revision
        self._parts = parts
        self._drain = asyncio.Event()
        self._hurry = asyncio.Event()
        self._exit_grace_s, self._commit_s = EXIT_GRACE_S, COMMIT_S
        self._moving = asyncio.Lock()
        self._lost = False
        self.pooled: PooledContainer | None = None
        self.over = asyncio.Event()
        """Set when its container is gone and its claim dealt with."""

    # ------------------------------------------------------------------ what others ask of it

    def drain(self) -> None:
        """Take no more inputs, finish what runs, end."""
        self._drain.set()

    def leave(self) -> None:
        """The same, and the agent ends too: the last commit of its volumes cannot take as long as it likes."""
        self._commit_s = LEAVING_COMMIT_S
        self.drain()

    def hurry(self, exit_grace_s: float = EXIT_GRACE_S) -> None:
        """Do not wait for what runs; `@exit` hooks may take so long."""
        self._exit_grace_s = exit_grace_s
        self._commit_s = min(self._commit_s, LEAVING_COMMIT_S, exit_grace_s)
        self._drain.set()
        self._hurry.set()

    def device_failed(self, uuid: str, why: str) -> None:
        """Nothing may compute on one of its devices any more: it ends at once, and its inputs run elsewhere."""
        if uuid not in self.claim.gpus:
            return
        log.warning("container_loses_its_gpu", container=self.claim.container, gpu=uuid, reason=why)
        self.hurry()
        if self.pooled is not None:
            self.pooled.take_away(f"its GPU {uuid} {why}")
            self.pooled.container.kill(f"killed: its GPU {uuid} {why}")

    def on_claim_changed(self, claim: ContainerClaim | None, revision: int) -> None:
        """Somebody else wrote the claim: the scheduler asks for a drain, or has given the place away."""
        if revision <= self.revision:
            return
        if claim is None or claim.container != self.claim.container:
            self._lost = True
            self.drain()
        else:
            self.revision = revision
            if claim.state == ClaimState.DRAINING:
                self.claim = replace(self.claim, state=claim.state, reason=claim.reason)
                self.drain()

    # ------------------------------------------------------------------ its life

    async def live(self) -> None:
        """From the proposed claim to the end."""
        try:
            function = await self._parts.records.function(self.claim.function_id)
        except SquallError as error:
            await self._end_as(ClaimState.REFUSED, reason=f"its function cannot be read: {error.message}")
            return
        decision = self._parts.capacity.reserve(self.claim, function)
        if isinstance(decision, Refuse):
            log.info("claim_refused", claim=self.key, reason=decision.reason)
            self._parts.metrics.claim_refused()
            await self._end_as(ClaimState.REFUSED, reason=decision.reason)
            return
        try:
            await self._occupy(function)
        finally:
            self._parts.capacity.release(self.claim.container)
            self._parts.launcher.forget(self.claim.container)

    async def _occupy(self, function: FunctionRecord) -> None:
        began_at = self._parts.clock.monotonic()
        failpoint("agent.claim_accepted")
        try:
            launched = await self._start(function)
        except StartFailed as failure:
            await self._start_failed(function, failure)
            return
        if launched is None:
            await self._delete()
            return
        self._parts.metrics.container_started(launched.container.how, self._parts.clock.monotonic() - began_at)
        await self._serve(function, launched)

    async def _start(self, function: FunctionRecord) -> Launched | None:
        """The container; None when it is no longer wanted. The claim is moved and the pool opened meanwhile."""
        launching: asyncio.Task[Launched] | None = None
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._move(ClaimState.STARTING))
                group.create_task(self._parts.pools.open(self.claim.pool, function))
                launching = group.create_task(self._launch(function))
                unwanted = group.create_task(self._drain.wait())
                await asyncio.wait([launching, unwanted], return_when=asyncio.FIRST_COMPLETED)
                unwanted.cancel()
                if not launching.done():
                    launching.cancel()
                await asyncio.wait([launching])
        except ExceptionGroup as group_error:
            failure = _start_failure(group_error)
            if launching is not None and launching.done() and not launching.cancelled() and not launching.exception():
                launching.result().container.kill("its pool could not be opened")
            raise failure from group_error
        return None if launching.cancelled() else launching.result()

    async def _launch(self, function: FunctionRecord) -> Launched:
        parts, claim = self._parts, self.claim
        pool = await parts.records.pool(claim.pool)
        in_name_only = [uuid for uuid in claim.gpus if parts.capacity.gpus.is_simulated(uuid)]
        said = [f"its GPUs are simulated: {', '.join(in_name_only)}"] if in_name_only else []
        said += smaller(claim, function.spec.resources)
        env = parts.capacity.gpu_env(claim.gpus)
        gpus = tuple(uuid for uuid in claim.gpus if uuid not in in_name_only)
        return await parts.launcher.launch(claim, function, pool, env, gpus, "; ".join(said))

    async def _serve(self, function: FunctionRecord, launched: Launched) -> None:
        """Take inputs until told to drain, or until the container ends by itself."""
        container = launched.container
        failpoint("agent.container_ready")
        self.pooled = pooled = PooledContainer(
            container=container,
            pool=self.claim.pool,
            function=function,
            ready_ns=launched.ready_ns,
            start_rows=launched.rows,
            cold_call=self.claim.cold_call,
            gpus=self.claim.gpus,
        )
        pool = await self._parts.pools.open(self.claim.pool, function)
        pool.add(pooled)
        how = f"{container.how}: {container.why}" if container.why else container.how
        log.info("container_ready", container=container.id, pool=self.claim.pool, how=how, **self._devices())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._move(ClaimState.READY, spans=launched.rows, how=how))
                ended = group.create_task(container.wait())
                drained = group.create_task(self._drained(pooled))
                await asyncio.wait([ended, drained], return_when=asyncio.FIRST_COMPLETED)
                pool.retire(pooled)
                drained.cancel()
                if not ended.done():
                    pooled.take_away()
                exit = ended.result() if ended.done() else await container.stop(self._exit_grace_s, self._commit_s)
                ended.cancel()
            # Before the claim goes: whoever sees it gone may give its room and its devices to another container.
            self._parts.capacity.release(self.claim.container)
            await self._ended(pooled, exit)
        finally:
            pool.forget(pooled)
            container.kill("its tenancy ended")
            await self._parts.pools.close_if_empty(self.claim.pool)

    def _devices(self) -> dict[str, str]:
        """For the log."""
        gpus = self._parts.capacity.gpus
        said = [f"{uuid} (simulated)" if gpus.is_simulated(uuid) else uuid for uuid in self.claim.gpus]
        return {"gpus": ", ".join(said)} if said else {}

    async def _drained(self, pooled: PooledContainer) -> None:
        """Told to drain, and nothing runs any more (or there is no time to wait for it); or it takes no more inputs,
        and the last one has ended."""
        await self._first_of(self._drain, pooled.emptied)
        pool = self._parts.pools.get(self.claim.pool)
        if pool is not None:
            pool.retire(pooled)
        if has_web(pooled.function) and not pooled.emptied.is_set() and not self._hurry.is_set():
            await self._tell_gateways(pooled)
        await self._first_of(pooled.emptied, self._hurry)

    async def _tell_gateways(self, pooled: PooledContainer) -> None:
        """Gateways have their WebSockets come again elsewhere when the claim says that the container is to end; if
        it is the machine that drains, nobody else would say so."""
        if self.claim.state != ClaimState.READY:
            return
        async with asyncio.TaskGroup() as group:
            telling = group.create_task(self._move(ClaimState.DRAINING, reason="its node is drained"))
            await self._first_of(pooled.emptied, self._hurry)
            telling.cancel()

    async def _first_of(self, *events: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(event.wait()) for event in events]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

    async def _ended(self, pooled: PooledContainer, exit: Exit) -> None:
        asked = self._drain.is_set()
        log.info("container_ended", container=pooled.id, pool=pooled.pool, reason=exit.reason, asked=asked)
        lived_s = self._parts.clock.now() - pooled.ready_ns / 1e9
        await self._parts.logs.flush_container(pooled.id)
        if not asked and not pooled.served and lived_s < CRASHED_EARLY_S:
            await self._end_as(ClaimState.FAILED, reason=f"the container {exit.reason} before its first input")
        else:
            await self._delete()

    async def _start_failed(self, function: FunctionRecord, failure: StartFailed) -> None:
        user_error = failure.kind is StartFailureKind.USER_CODE
        reason = start_reason(function, failure)
        log.warning("container_start_failed", claim=self.key, kind=failure.kind.value, reason=reason)
        self._parts.metrics.container_failed(failure.kind.value)
        error = results.start_error(failure)
        if has_web(function) or not function.ephemeral:  # else whoever waits for a call is told, and it runs no longer
            self._log_failure(function, reason, failure)
        spans = [*self.claim.spans, *phase_rows(failure.phases)]
        await self._parts.logs.flush_container(self.claim.container)
        lost, killed = (failure.kind is kind for kind in (StartFailureKind.IMAGE_LOST, StartFailureKind.KILLED))
        starts = self.claim.killed_before + 1
        told = {"reason": reason, "error": error, "user_error": user_error, "image_lost": lost, "killed": killed}
        await self._end_as(ClaimState.FAILED, spans=spans, **told)
        if killed and starts >= MOST_KILLED_STARTS:
            error = results.killed_error(reason, starts)
            await self._parts.pending.fail(self.claim.pool, function, error, None)
        if user_error and function.ephemeral:
            await self._parts.pending.fail(self.claim.pool, function, error, failure.pickled)
        await self._parts.pools.close_if_empty(self.claim.pool)

    def _log_failure(self, function: FunctionRecord, reason: str, failure: StartFailed) -> None:
        """For the function's owner; clients of web functions are told no more than that it does not start."""
        claim = self.claim
        on_log = self._parts.logs.of(function.app_id, claim.pool, function.spec.name, claim.container)
        if failure.traceback:
            on_log(Log(container=claim.container, stream="stderr", text=failure.traceback.rstrip("\n") + "\n"))
        on_log(Log(container=claim.container, stream="system", text=f"the container did not start: {reason}\n"))

    # ------------------------------------------------------------------ the claim

    async def _move(self, state: str, **changes: Any) -> None:
        """Write the claim's next state, unless the scheduler asked for a drain or gave the place away meanwhile."""
        async with self._moving:
            while not self._lost:
                claim = replace(self.claim, state=state, updated_at=self._parts.clock.now(), **changes)
                try:
                    if await self._written(claim) or await self._reread():
                        return
                except BusError as error:  # of the reading too: the container lives on, and ends when it is asked to
                    log.warning("claim_not_written", claim=self.key, state=state, reason=error.message)
                    return

    async def _end_as(self, state: str, **changes: Any) -> None:
        """The claim's last state, of which the scheduler takes note. If it has asked for a drain meanwhile, that is
        void: then it waits for the claim to go, and nobody else would remove it."""
        await self._move(state, **changes)
        if self.claim.state == ClaimState.DRAINING:
            await self._delete()

    async def _written(self, claim: ContainerClaim) -> bool:
        """False when somebody else has changed it since we read it."""
        try:
            self.revision = await self._parts.claims.update(self.key, claim.encode(), self.revision)
        except WrongRevision:
            return False
        self.claim = claim
        return True

    async def _reread(self) -> bool:
        """Take over what somebody else wrote; True when our own write is void."""
        entry = await self._parts.claims.get(self.key)
        claim = None if entry is None else ContainerClaim.decode(entry.value)
        if entry is None or claim is None or claim.container != self.claim.container:
            self._lost = True
            self.drain()
            return True
        self.revision = entry.revision
        if claim.state == ClaimState.DRAINING:
            self.claim = replace(self.claim, state=claim.state)
            self.drain()
            return True
        return False

    async def _delete(self) -> None:
        async with self._moving:
            for _ in range(3):
                if self._lost:
                    return
                try:
                    await self._parts.claims.delete(self.key, self.revision)
                    return
                except WrongRevision:
                    await self._reread()
                except BusError as error:
                    log.warning("claim_not_deleted", claim=self.key, reason=error.message)
                    return


def start_reason(function: FunctionRecord, failure: StartFailed) -> str:
    """Why there is no container, in one sentence for the user who waits."""
    match failure.kind:
        case StartFailureKind.USER_CODE:
            what = _step_of(function, failure)
            return f"{what} failed: {failure.type_name.rpartition('.')[2]}: {failure.message}"[:1000]
        case StartFailureKind.TIMEOUT:
            return f"not ready within startup_timeout of {function.spec.startup_timeout_s:g} s"
        case StartFailureKind.IMAGE | StartFailureKind.IMAGE_LOST | StartFailureKind.INFRA | StartFailureKind.KILLED:
            return failure.message[:1000]


def _step_of(function: FunctionRecord, failure: StartFailed) -> str:
    """Of which step of user code the failure is: the last one that began."""
    match failure.phases[-1].name if failure.phases else "":
        case spans.WEB_OPEN:
            return f"the start of the web server of {function.spec.name}"
        case spans.ENTER | spans.ENTER_SNAP:
            return f"@enter of {function.spec.name}"
        case _:
            return f"import of {function.spec.code.module}"


def _start_failure(group: ExceptionGroup[Exception]) -> StartFailed:
    """The failure inside a task group: the start's own, or what kept it from starting."""
    for error in group.exceptions:
        match error:
            case StartFailed():
                return error
            case ExceptionGroup():
                return _start_failure(error)
            case SquallError():
                return StartFailed(StartFailureKind.INFRA, error.message)
            case OSError() | ValueError() | OverflowError():
                return StartFailed(StartFailureKind.INFRA, str(error))
            case _:
                pass
    raise group
