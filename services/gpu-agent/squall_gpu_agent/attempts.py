"""Attempts: the life of one held call, from its history to its ack. The order of design section 5, in one place.

Owns the sequence; what each step does is in history, execution, settlement and policy/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from squall import errors
from squall.http_api.protocol import blob_ref
from squall.spec import INLINE_LIMIT_BYTES, MAX_PAYLOAD_BYTES, Outcome
from squall_bus import BusError
from squall_contracts.calls import CallRequested, CallResult
from squall_contracts.envelope import BadMessage
from squall_contracts.functions import FunctionRecord
from squall_contracts.retention import result_ttl_s
from squall_gpu_agent import results
from squall_gpu_agent.backend import End, Failed, FailureKind, FullDisk, Lost, NotBegun, Output
from squall_gpu_agent.cancels import Cancels
from squall_gpu_agent.events import Events
from squall_gpu_agent.execution import Execution
from squall_gpu_agent.held import KINDS, Held
from squall_gpu_agent.history import NO_PAST, History, Past
from squall_gpu_agent.leases import Leases
from squall_gpu_agent.logs import Logs
from squall_gpu_agent.metering import Metering
from squall_gpu_agent.policy.lifecycle import Event
from squall_gpu_agent.policy.retry import Cause, Failure, GiveUp, HandBack, decide
from squall_gpu_agent.pool import Pool
from squall_gpu_agent.settlement import Settlement
from squall_service.blobs import Blobs
from squall_service.clock import Clock
from squall_service.failpoints import failpoint
from squall_service.telemetry import log

EARLY_S = 0.05
"""A delivery before its retry is due by no more than that is the queue's timer, not a mistake."""
OWN_ATTEMPT_S = 1.0
"""Before a call is looked at again whose earlier attempt still runs here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptParts:
    """What an attempt needs, built once in service.py."""

    clock: Clock
    history: History
    execution: Execution
    settlement: Settlement
    events: Events
    blobs: Blobs
    logs: Logs
    metering: Metering
    leases: Leases
    cancels: Cancels


class Attempts:
    """Conducts held calls."""

    def __init__(self, parts: AttemptParts) -> None:
        self._parts = parts
        self._here: set[tuple[str, str, int]] = set()
        """Inputs between their delivery and their record. A queue that has forgotten who has what delivers one
        a second time while the history of the first delivery is still being read."""

    async def conduct(self, held: Held, pool: Pool) -> None:
        """From a call with a container to its end here. The slot is free as soon as the code has ended."""
        parts, container = self._parts, held.container
        assert container is not None
        end: End | NotBegun | None = None
        if held.place in self._here:
            # Our own attempt that lost its lease: when it succeeds after all, the next delivery finds its result.
            held.hand_back(parts.clock.monotonic(), OWN_ATTEMPT_S)
            pool.slot_free(container, None)
            return
        self._here.add(held.place)
        try:
            try:
                if await self._may_start(held, pool.function):
                    end = await parts.execution.run(held, container, self._is_open)
                    held.taken_away = container.taken_away
                    if end is not None and _is_useless_after(end):
                        pool.retire(container)  # before anything else is given to it
            finally:
                pool.slot_free(container, held.run_s)
            if isinstance(end, NotBegun):
                pool.wait_again(held)
            elif end is not None:
                await self._settle(held, end, container.function)
        finally:
            self._here.discard(held.place)

    # ------------------------------------------------------------------ before

    async def _may_start(self, held: Held, function: FunctionRecord) -> bool:
        """Name the attempt if there may be one; otherwise the call has been brought to its end here."""
        past = NO_PAST
        if self._parts.cancels.recent(*held.place):
            held.cancelled = True
        if self._parts.history.needed(held, self._parts.clock.now()):
            try:
                past = await self._parts.history.read(held)
            except (BusError, BadMessage) as error:  # of a newer agent, perhaps: it comes again, also to that one
                log.warning("history_not_readable", call=held.request.call, reason=error.message)
                self._parts.settlement.abandon(held)
                return False
        failpoint("agent.history_read")
        return await self._judge(held, past, function)

    async def _is_open(self, held: Held) -> bool:
        """Asked once more: a queue that has forgotten its leases in a crash gave it to somebody else meanwhile, and
        confirms ours all the same."""
        if not self._parts.history.needed(held, self._parts.clock.now()):
            return True
        try:
            recorded = await self._parts.history.result(held.request)
        except BusError:
            return True
        if recorded is not None:
            self._parts.settlement.skip(held, recorded)
        return recorded is None

    async def _judge(self, held: Held, past: Past, function: FunctionRecord) -> bool:
        request, now = held.request, self._parts.clock.now()
        if past.result is not None:
            self._parts.settlement.skip(held, past.result)
            return False
        if past is not NO_PAST and self._parts.cancels.recent(*held.place):  # it came while the history was read
            held.cancelled = True
        held.totals, held.attempts_seq, held.earlier = past.totals, past.attempts_seq, list(past.lines)
        counted = past.totals.user + past.totals.infra
        if held.cancelled:
            await self._end_unstarted(held, results.cancelled(request, now), function, "cancelled")
            return False
        if now > request.deadline and not counted and not past.lost_attempt:
            await self._end_unstarted(held, results.expired(request, now), function, "expired")
            return False
        if past.retry_at > now + EARLY_S:
            # A queue that has lost its state in a crash of the server delivers at once what it was to hold back.
            held.hand_back(self._parts.clock.monotonic(), min(past.retry_at - now, function.spec.retry.max_delay_s))
            return False
        if past.lost_attempt and not await self._count_lost(held, past, function):
            return False
        if not held.speaks(self._parts.clock.monotonic()):
            self._parts.settlement.abandon(held)
            return False
        held.name_attempt(held.totals.user + held.totals.infra + 1)
        return True

    async def _count_lost(self, held: Held, past: Past, function: FunctionRecord) -> bool:
        """An agent died with an attempt of this call; nobody else can count that. False when the cap is reached."""
        failure = Failure(cause=Cause.INFRA, detail=f"attempt {past.lost_attempt} on {past.lost_node} was lost")
        decision = decide(function.spec.retry, held.totals, failure, now=self._parts.clock.now())
        if isinstance(decision, HandBack):
            if await self._parts.settlement.count(held, decision, attempt=past.lost_attempt):
                return True
            self._parts.settlement.abandon(held)
            return False
        error = results.infra_error(decision.reason, [*held.earlier, failure.detail], out_of_memory=False)
        result = results.without_attempt(held.request, Outcome.FAILED, error, self._parts.clock.now())
        await self._end_unstarted(held, result, function, "finished")
        return False

    async def _end_unstarted(self, held: Held, result: CallResult, function: FunctionRecord, event: str) -> None:
        held.advance(Event.SETTLED_UNSTARTED)
        await self._parts.settlement.record(held, result, kept_s(function, held.request), event)

    # ------------------------------------------------------------------ after

    async def _settle(self, held: Held, end: End, function: FunctionRecord) -> None:
        """Everything between the end of the code and the ack."""
        failpoint("agent.ended")
        await self._parts.logs.flush_call(*held.key)
        match end:
            case Output():
                await self._succeeded(held, end, function)
            case Failed() | Lost():
                await self._failed(held, end, function)
        self._parts.metering.attempt_ended(held, end)

    async def _succeeded(self, held: Held, end: Output, function: FunctionRecord) -> None:
        try:
            content = await self._payload(end, held.request.workspace)
        except errors.SerializationError as error:
            await self._failed(held, _failure(FailureKind.SERIALIZATION, error.message), function)
            return
        except (errors.SquallError, OSError) as error:
            await self._failed(held, _failure(FailureKind.INFRA, f"the result could not be stored: {error}"), function)
            return
        if content[1] is not None:
            failpoint("agent.blob_stored")
        result = self._result(held, Outcome.SUCCEEDED, content, items=_items(held, end.items))
        await self._record(held, result, function)

    async def _payload(self, end: Output, workspace: str) -> tuple[bytes, str | None]:
        """Inline bytes, or a reference to a blob that is durable already."""
        if end.path is not None:
            try:
                if end.size > MAX_PAYLOAD_BYTES:
                    raise errors.SerializationError(f"the result has {end.size} bytes, the most is {MAX_PAYLOAD_BYTES}")
                return b"", blob_ref(*await self._parts.blobs.of(workspace).put_file(end.path))
            finally:
                end.path.unlink(missing_ok=True)
        payload = end.payload or b""
        if len(payload) > INLINE_LIMIT_BYTES:
            return b"", blob_ref(*await self._parts.blobs.of(workspace).put_bytes(payload))
        return payload, None

    async def _failed(self, held: Held, end: Failed | Lost, function: FunctionRecord) -> None:
        if (held.cancelled and not isinstance(end, Failed)) or (isinstance(end, Failed) and _was_cancelled(held, end)):
            result = results.cancelled(held.request, self._parts.clock.now())
            ttl_s = kept_s(function, held.request)
            await self._parts.settlement.record(held, result, ttl_s, "cancelled")
            return
        if await self._parts.settlement.superseded(held):
            return
        failure = classify(held, end)
        decision = decide(function.spec.retry, held.totals, failure, now=self._parts.clock.now())
        if isinstance(decision, GiveUp):
            await self._give_up(held, end, decision, function)
        else:
            await self._parts.settlement.retry(held, decision)

    async def _give_up(self, held: Held, end: Failed | Lost, decision: GiveUp, function: FunctionRecord) -> None:
        payload = b""
        if held.timed_out:
            error = results.timed_out_error(function.spec.timeout_s)
        elif isinstance(end, Failed) and end.kind is not FailureKind.INFRA:
            error, payload = results.user_error(end), _exception(end)
        else:
            out_of_memory = isinstance(end, Lost) and end.exit.oom
            error = results.infra_error(decision.reason, held.earlier, out_of_memory=out_of_memory)
        items = _items(held, end.items) if isinstance(end, Failed) else None
        await self._record(
            held, self._result(held, decision.outcome, (payload, None), error=error, items=items), function
        )

    def _result(
        self,
        held: Held,
        outcome: Outcome,
        content: tuple[bytes, str | None],
        *,
        error: dict[str, Any] | None = None,
        items: int | None = None,
    ) -> CallResult:
        request, container = held.request, held.container
        return CallResult.of(
            call=request.call,
            index=request.index,
            workspace=request.workspace,
            outcome=outcome.value,
            attempt=held.attempt,
            node=self._parts.events.node,
            container=container.id if container is not None else "",
            started_at=held.started_at,
            ended_at=held.ended_ns / 1e9,
            function=request.function,
            pool=request.pool,
            payload=content[0],
            encoding=request.encoding if outcome is Outcome.SUCCEEDED else "pickle",
            blob=content[1],
            error=error,
            items=items,
        )

    async def _record(self, held: Held, result: CallResult, function: FunctionRecord) -> None:
        ttl_s = kept_s(function, held.request)
        await self._parts.settlement.record(held, result, ttl_s, "finished", result.outcome)


def kept_s(function: FunctionRecord, request: CallRequested) -> float:
    """How long the result of an input is kept."""
    return result_ttl_s(function.spec, KINDS[request.kind], keyed=request.keyed)


def classify(held: Held, end: Failed | Lost) -> Failure:
    """What kind of failure an end was, for the retry policy."""
    if held.timed_out:
        return Failure(cause=Cause.TIMEOUT, detail="ran longer than its timeout")
    if held.taken_away:
        return Failure(cause=Cause.INFRA, detail=held.taken_away)
    if isinstance(end, Lost):
        return Failure(cause=Cause.INFRA, detail=f"its container ended: {end.exit.reason}")
    match end.kind:
        case FailureKind.USER | FailureKind.CANCELLED | FailureKind.DISK_FULL:
            return Failure(cause=Cause.EXCEPTION, detail=f"raised {end.type_name}: {end.message[:200]}")
        case FailureKind.DESERIALIZATION | FailureKind.SERIALIZATION:
            return Failure(cause=Cause.DATA, detail=end.message[:200])
        case FailureKind.INFRA:
            return Failure(cause=Cause.INFRA, detail=end.message[:200])


def _is_useless_after(end: End | NotBegun) -> bool:
    """Whether the next input in the same container would fail for the same reason."""
    match end:
        case NotBegun():
            return end.exit is not None
        case Failed(kind=FailureKind.DISK_FULL | FailureKind.INFRA, disk=FullDisk(still=still)):
            return still
        case _:
            return False


def _was_cancelled(held: Held, end: Failed) -> bool:
    """Whether it ended because the caller cancelled it, not because of its time limit or by itself."""
    return held.cancelled and end.kind is FailureKind.CANCELLED


def _exception(end: Failed) -> bytes:
    """What callers raise, unless it is an error of the platform's."""
    return b"" if end.kind is FailureKind.DISK_FULL else results.exception_payload(end.pickled)


def _items(held: Held, count: int) -> int | None:
    return count if held.request.kind == "generator" else None


def _failure(kind: FailureKind, message: str) -> Failed:
    return Failed(kind=kind, type_name="", module="", message=message, traceback="")
