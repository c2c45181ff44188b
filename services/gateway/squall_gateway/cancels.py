"""Cancelling: the record first, then everybody who may run it is told, then the queue is cleared.

The record decides: who writes it first wins, so a call that has ended stays what it is. What was not yet handed to an
agent is removed from WORK; the journal keeps its record, or the same input sent again would be taken a second time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from squall.errors import CallCancelledError, NotFoundError
from squall.ids import shard_of
from squall.spec import Kind, Outcome
from squall_bus import Bus, BusUnavailable, NotFound, Published, Record, Stored, SubjectTaken
from squall_contracts import subjects
from squall_contracts.calls import CallEvent, CallRequested, CallResult, CancelRequested
from squall_contracts.functions import AppRecord
from squall_contracts.retention import SPAWNED_S, result_ttl_s
from squall_contracts.subjects import parse_call
from squall_gateway.directory import Directory
from squall_gateway.results import Results
from squall_service.clock import Clock
from squall_service.failpoints import failpoint
from squall_service.telemetry import log

CHUNK = 500
PURGE_S = 10.0
"""How long WORK may be behind the journal before we stop looking; agents skip what has a record anyway."""
PAUSE_S = 0.05
UNKNOWN_LAG = 1
"""A queue that takes nothing over at the moment says that it is not behind."""
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Cancels:
    """Ends calls that nobody wants any more."""

    bus: Bus
    directory: Directory
    results: Results
    clock: Clock

    @property
    def region(self) -> str:
        """The region whose calls are cancelled."""
        return self.bus.topology.region

    async def call(self, call: str, workspace: str, *, terminate_containers: bool = False) -> int:
        """Cancel every input of a call that has not ended; how many those were. Raises `NotFoundError`."""
        first = await self.results.first_record(call, workspace)
        if first is None:
            if await self._finished(call, workspace):
                return 0
            raise self.results.missing(call, 0)
        indices = await self._open_inputs(first)
        cancelled = await self._record(first, indices)
        failpoint("gateway.cancel_recorded")
        self._tell(first.call, first.pool, terminate_containers=terminate_containers)
        failpoint("gateway.cancel_told")
        try:
            await self._clear(shard_of(call), subjects.calls_of(self.region, first.pool, call), len(indices))
        except NotFound as error:  # the scheduler makes it again, without what has ended
            log.warning("queue_is_missing", call=call, reason=error.message)
        return cancelled

    async def app(self, app: AppRecord) -> int:
        """Cancel everything of an app that was stopped; how many inputs those were."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def clear(pool: str, shard: int) -> int:
            async with slots:
                try:
                    return await self._pool(pool, shard)
                except NotFound as error:
                    raise BusUnavailable("a queue is being made again; stop the app once more") from error

        pools = await self.directory.pools_of_now(app.app_id)
        try:
            async with asyncio.TaskGroup() as tasks:
                counts = [
                    tasks.create_task(clear(pool.pool, shard))
                    for pool in pools
                    for shard in range(self.bus.topology.shards)
                ]
        except ExceptionGroup as group:
            raise group.exceptions[0] from group  # the caller is told what is wrong, and repeats it
        return sum(task.result() for task in counts)

    # ------------------------------------------------------------------ one call

    async def _finished(self, call: str, workspace: str) -> set[int]:
        stream = subjects.results_stream(self.region, shard_of(call))
        info = await self.bus.stream_info(stream, subjects.results_of(self.region, workspace, call))
        return {parse_call(subject).index for subject in info.subjects}

    async def _open_inputs(self, first: CallRequested) -> list[int]:
        stream = subjects.journal_stream(self.region, shard_of(first.call))
        info = await self.bus.stream_info(stream, subjects.calls_of(self.region, first.pool, first.call))
        accepted = {parse_call(subject).index for subject in info.subjects}
        return sorted(accepted - await self._finished(first.call, first.workspace))

    async def _record(self, first: CallRequested, indices: Sequence[int]) -> int:
        """Write `cancelled` for each; how many had not ended before."""
        ttl_s = await self._ttl_s(first)
        results = [cancelled_result(first, index, self.clock.now()) for index in indices]
        won = await self._write(results, ttl_s)
        if first.reply_to is not None:
            for result in won:
                self.bus.send(first.reply_to, result.encode())
        return len(won)

    # ------------------------------------------------------------------ a pool

    async def _pool(self, pool: str, shard: int) -> int:
        work, wanted = subjects.work_stream(self.region, shard), subjects.calls_of_pool(self.region, shard, pool)
        total, quiet = 0, 0
        until = self.clock.monotonic() + PURGE_S
        # Twice quiet: WORK tells its distance to the journal as of the last message it got.
        while quiet < 2 and self.clock.monotonic() < until:
            found = 0
            async for chunk in chunked(self.bus.read(work, wanted)):
                found += len(chunk)
                total += await self._cancel_queued(chunk)
            if found:
                await self.bus.purge(work, wanted)
            quiet = 0 if found or await self._lag(shard) else quiet + 1
            if quiet < 2:
                await self.clock.sleep(PAUSE_S)
        return total

    async def _cancel_queued(self, chunk: Sequence[CallRequested]) -> int:
        """Inputs of one pool, of any calls."""
        now = self.clock.now()
        replies = {(each.call, each.index): each.reply_to for each in chunk}
        ttls = {kind: await self._ttl_s(next(c for c in chunk if c.kind == kind)) for kind in {c.kind for c in chunk}}
        won: list[CallResult] = []
        for kind, ttl_s in ttls.items():
            won += await self._write([cancelled_result(c, c.index, now) for c in chunk if c.kind == kind], ttl_s)
        for result in won:
            reply_to = replies[result.call, result.index]
            if reply_to is not None:
                self.bus.send(reply_to, result.encode())
        for call, pool in {(each.call, each.pool) for each in chunk}:
            self._tell(call, pool, terminate_containers=True)
        return len(won)

    # ------------------------------------------------------------------ steps

    async def _ttl_s(self, asked: CallRequested) -> float:
        try:
            function = await self.directory.function(asked.function, asked.workspace)
        except NotFoundError:
            return SPAWNED_S
        return result_ttl_s(function.spec, Kind(asked.kind), keyed=asked.keyed)

    async def _write(self, results: Sequence[CallResult], ttl_s: float) -> list[CallResult]:
        """Those that were written; the others had ended before. Raises what kept any from being decided."""
        records = [
            Record(
                subjects.result(self.region, result.workspace, result.call, result.index),
                result.encode(),
                msg_id=f"{result.call}.{result.index}.cancel",
                ttl_s=ttl_s,
            )
            for result in results
        ]
        outcomes = await self.bus.publish_batch(records)
        won = [result for result, outcome in zip(results, outcomes, strict=True) if isinstance(outcome, Published)]
        for outcome in outcomes:
            if not isinstance(outcome, Published | SubjectTaken):
                raise outcome
        for result in won:
            event = CallEvent(result.call, result.index, "cancelled", result.ended_at)
            self.bus.publish_soon(
                subjects.event(self.region, result.workspace, result.call, result.index), event.encode()
            )
        return won

    def _tell(self, call: str, pool: str, *, terminate_containers: bool) -> None:
        command = CancelRequested(call=call, pool=pool, terminate_containers=terminate_containers)
        self.bus.send(subjects.cancel(self.region, pool), command.encode())

    async def _lag(self, shard: int) -> int:
        """How many messages WORK is behind the journal."""
        info = await self.bus.stream_info(subjects.work_stream(self.region, shard))
        source = info.sources.get(subjects.journal_stream(self.region, shard))
        if source is None:
            return 0
        return source.lag if source.silent_s is not None and not source.error else UNKNOWN_LAG

    async def _clear(self, shard: int, wanted: str, expected: int) -> None:
        """Remove inputs from WORK, also those that are still on their way there from the journal."""
        work = subjects.work_stream(self.region, shard)
        removed, quiet = await self.bus.purge(work, wanted), 0
        until = self.clock.monotonic() + PURGE_S
        while removed < expected and quiet < 2:
            if self.clock.monotonic() > until:
                log.warning("work_is_behind", stream=work, expected=expected, removed=removed)
                return
            quiet = quiet + 1 if await self._lag(shard) == 0 else 0
            await self.clock.sleep(PAUSE_S)
            removed += await self.bus.purge(work, wanted)


def cancelled_result(asked: CallRequested, index: int, now: float) -> CallResult:
    """The record of an input that was cancelled."""
    error = CallCancelledError()
    return CallResult(
        call=asked.call,
        index=index,
        workspace=asked.workspace,
        outcome=Outcome.CANCELLED.value,
        attempt="",
        error={
            "kind": error.code,
            "type": type(error).__name__,
            "module": "squall.exception",
            "message": error.message,
            "traceback": "",
            "fix": error.hint,
            "data": {},
        },
        ended_at=now,
        function=asked.function,
        pool=asked.pool,
    )


async def chunked(stored: AsyncIterator[Stored]) -> AsyncIterator[list[CallRequested]]:
    """Decoded records, some at a time: a pool may have a million."""
    chunk: list[CallRequested] = []
    async for each in stored:
        chunk.append(CallRequested.decode(each.data))
        if len(chunk) >= CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
