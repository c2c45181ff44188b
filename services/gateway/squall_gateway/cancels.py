"""Cancelling: the record first, then everybody who may run it is told, then the queue is cleared.

The record decides: who writes it first wins, so a call that has ended stays what it is. What was not yet handed to an
agent is removed from WORK; the journal keeps its record, or the same input sent again would be taken a second time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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

CHUNK = 1000
"""A whole batch of the bus. Nearly each meets records of an agent that heard of the cancel, and is written in parts."""
STILL_S = 4.0
SOON_S = 0.05
PURGE_S = 10.0
"""How long WORK may be behind the journal before we stop looking; agents skip what has a record anyway."""
PAUSE_S = 0.05
UNKNOWN_LAG = 1
"""A queue that takes nothing over at the moment says that it is not behind."""
AT_ONCE = 16


class Queued(NamedTuple):
    """An input in WORK."""

    seq: int
    request: CallRequested


@dataclass(slots=True)
class Tally:
    """What a cancel has done so far. Exact: an input counts as cancelled when its record was written by this cancel, or
    meanwhile by an agent that it told."""

    terminate_containers: bool = False
    cancelled: int = 0
    ended: int = 0
    """Inputs that had ended before, or ended while they were about to be cancelled."""

    def count(self, cancelled: int, inputs: int) -> None:
        """Take in some inputs and how many of them were cancelled."""
        self.cancelled += cancelled
        self.ended += inputs - cancelled


@dataclass(slots=True)
class Still:
    """A long queue stands still while it is cancelled. Agents would take inputs from its head and record them while we
    do: nearly every batch of ours would meet one of theirs, and be written in parts."""

    bus: Bus
    work: str
    pool: str
    until: float = 0.0
    """By our monotonic clock; a gateway that dies leaves the queue to go on by itself then."""

    async def keep(self, now: float) -> None:
        """Hand out nothing for a while longer."""
        if now > self.until - STILL_S / 2:
            await self.bus.pause_consumer(self.work, self.pool, STILL_S)
            self.until = now + STILL_S

    async def end(self) -> None:
        """Go on."""
        if self.until:
            await self.bus.pause_consumer(self.work, self.pool, SOON_S)


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
        tally = Tally(terminate_containers)
        await self.inputs(first, tally)
        return tally.cancelled

    async def inputs(self, first: CallRequested, tally: Tally) -> None:
        """Cancel every input of a call, one of which is given; counts go to `tally` as they become certain."""
        accepted, ended = await self._inputs_of(first)
        tally.count(0, len(ended))
        indices = sorted(accepted - ended)
        for start in range(0, len(indices), CHUNK):
            some = indices[start : start + CHUNK]
            tally.count(await self._record(first, some), len(some))
        failpoint("gateway.cancel_recorded")
        self._tell(first.call, first.pool, terminate_containers=tally.terminate_containers)
        failpoint("gateway.cancel_told")
        wanted = subjects.calls_of(self.region, first.pool, first.call)
        try:
            await self._clear(shard_of(first.call), wanted, len(indices))
        except NotFound as error:  # the scheduler makes it again, without what has ended
            log.warning("queue_is_missing", call=first.call, reason=error.message)

    async def app(self, app: AppRecord, tally: Tally | None = None) -> int:
        """Cancel everything of an app that is queued or runs; how many inputs those were."""
        tally = tally or Tally(terminate_containers=True)
        await self.pools([pool.pool for pool in await self.directory.pools_of_now(app.app_id)], tally)
        return tally.cancelled

    async def pools(self, pools: Sequence[str], tally: Tally) -> None:
        """Cancel everything of these pools that is queued or runs."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def clear(pool: str, shard: int) -> None:
            async with slots:
                try:
                    await self.pool(pool, shard, tally)
                except NotFound as error:
                    raise BusUnavailable("a queue is being made again; cancel or stop once more") from error

        try:
            async with asyncio.TaskGroup() as tasks:
                for pool in pools:
                    for shard in range(self.bus.topology.shards):
                        tasks.create_task(clear(pool, shard))
        except ExceptionGroup as group:
            raise group.exceptions[0] from group  # the caller is told what is wrong, and repeats it

    # ------------------------------------------------------------------ one call

    async def _finished(self, call: str, workspace: str) -> set[int]:
        stream = subjects.results_stream(self.region, shard_of(call))
        info = await self.bus.stream_info(stream, subjects.results_of(self.region, workspace, call))
        return {parse_call(subject).index for subject in info.subjects}

    async def _inputs_of(self, first: CallRequested) -> tuple[set[int], set[int]]:
        """Indices of what was accepted, and of what has ended."""
        stream = subjects.journal_stream(self.region, shard_of(first.call))
        info = await self.bus.stream_info(stream, subjects.calls_of(self.region, first.pool, first.call))
        accepted = {parse_call(subject).index for subject in info.subjects}
        return accepted, await self._finished(first.call, first.workspace)

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

    async def pool(self, pool: str, shard: int, tally: Tally) -> None:
        """Cancel what is queued or runs of a pool; counts go to `tally` as they become certain."""
        quiet, until, since = 0, self.clock.monotonic() + PURGE_S, await self._results_end(shard)
        # Twice: WORK tells its distance to the journal as of the last message it got.
        while quiet < 2 and self.clock.monotonic() < until:
            behind = await self._lag(shard)
            if await self._pass(pool, shard, since, tally):
                until = self.clock.monotonic() + PURGE_S
            quiet = 0 if behind else quiet + 1
            if quiet < 2:
                await self.clock.sleep(PAUSE_S)

    async def _pass(self, pool: str, shard: int, since: int, tally: Tally) -> int:
        """Once through the queue: record some, take them off the queue, tell the agents that have them."""
        work, wanted = subjects.work_stream(self.region, shard), subjects.calls_of_pool(self.region, shard, pool)
        found, still = 0, Still(self.bus, work, pool)
        async for chunk in chunked(self.bus.read(work, wanted)):
            found += len(chunk)
            if len(chunk) == CHUNK:
                await still.keep(self.clock.monotonic())
            await self._cancel_queued(chunk, since, tally)
            # Up to what was recorded, not further: what came in since has no record.
            await self.bus.purge(work, wanted, below_seq=chunk[-1].seq + 1)
            consumer = await self.bus.consumer_info(work, pool)
            delivered = chunk[-1].seq if consumer is None else consumer.delivered_seq
            for call in {each.request.call for each in chunk if each.seq <= delivered}:
                self._tell(call, pool, terminate_containers=tally.terminate_containers)
        await still.end()
        return found

    async def _cancel_queued(self, chunk: Sequence[Queued], since: int, tally: Tally) -> None:
        """Inputs of one pool, of any calls."""
        now = self.clock.now()
        by_terms: dict[tuple[str, bool], list[CallRequested]] = {}
        for each in chunk:
            by_terms.setdefault((each.request.kind, each.request.keyed), []).append(each.request)
        for some in by_terms.values():
            ttl_s = await self._ttl_s(some[0])
            wanted = [cancelled_result(asked, asked.index, now) for asked in some]
            won = await self._write(wanted, ttl_s)
            tally.count(len(won) + await self._by_agents(wanted, won, since), len(some))
            replies = {(asked.call, asked.index): asked.reply_to for asked in some}
            for result in won:
                reply_to = replies[result.call, result.index]
                if reply_to is not None:
                    self.bus.send(reply_to, result.encode())

    async def _by_agents(self, wanted: Sequence[CallResult], won: Sequence[CallResult], since: int) -> int:
        """How many of the others an agent has recorded as cancelled meanwhile, because we had told it of their call."""
        ours = {(result.call, result.index) for result in won}
        lost = [result for result in wanted if (result.call, result.index) not in ours]
        if not lost:
            return 0
        names = [subjects.result(self.region, each.workspace, each.call, each.index) for each in lost]
        found = await self.bus.get_many(subjects.results_stream(self.region, shard_of(lost[0].call)), names)
        return sum(
            stored.seq > since and CallResult.decode(stored.data).outcome == Outcome.CANCELLED.value
            for stored in found.values()
        )

    async def _results_end(self, shard: int) -> int:
        """What is recorded after this position was recorded while we cancel."""
        return (await self.bus.stream_info(subjects.results_stream(self.region, shard))).last_seq

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
                msg_id=f"{result.workspace}.{result.call}.{result.index}.cancel",
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


async def chunked(stored: AsyncIterator[Stored]) -> AsyncIterator[list[Queued]]:
    """Decoded records, some at a time: a pool may have a million."""
    chunk: list[Queued] = []
    async for each in stored:
        chunk.append(Queued(each.seq, CallRequested.decode(each.data)))
        if len(chunk) >= CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
