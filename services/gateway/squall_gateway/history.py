"""What happened to calls: lists and details, read from the records of their pools. Filtered reads; no index is kept.

JOURNAL and RESULTS are the law, EVENTS only a hint at what is running.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from squall.errors import NotFoundError
from squall.http_api.calls import CallSummary
from squall.ids import created_at, shard_of
from squall.spec import Outcome, to_wire
from squall_bus import Bus
from squall_contracts import subjects
from squall_contracts.calls import AttemptFailed, CallRequested, CallResult
from squall_contracts.functions import PoolRecord
from squall_contracts.subjects import parse_call
from squall_gateway.call_headers import blob_size
from squall_gateway.directory import Directory
from squall_gateway.letters import Letters
from squall_gateway.policy.call_state import QUEUED, state_of
from squall_gateway.results import ANY_POOL, Results
from squall_gateway.single_copies import CopyAwayError
from squall_gateway.waiting import Waiting

MAX_POOLS = 200
"""Newest pools that a list without an app looks at."""
MAX_LINES = 1000
"""Attempts and events in one answer."""
AT_ONCE = 8


@dataclass(slots=True)
class Found:
    """What the streams say about one call."""

    call: str
    pool: str
    inputs: int = 0
    first: CallRequested | None = None
    ended: Counter[str] = field(default_factory=Counter)
    ended_at: float = 0.0
    error: str = ""
    last_error: dict[str, Any] | None = None
    started: bool = False
    function: str = ""

    def add_result(self, result: CallResult) -> None:
        """One input has ended."""
        self.ended[result.outcome] += 1
        self.ended_at = max(self.ended_at, result.ended_at)
        self.function = self.function or result.function
        if result.error is not None and not self.error:
            self.error = f"{result.error.get('type', '')}: {result.error.get('message', '')}"
            self.last_error = result.error


class History:
    """Reads the streams of calls."""

    def __init__(self, bus: Bus, directory: Directory, results: Results, waiting: Waiting, letters: Letters) -> None:
        self._bus = bus
        self._letters = letters
        self._directory = directory
        self._results = results
        self._waiting = waiting
        self._region = bus.topology.region

    async def recent(self, pools: Iterable[PoolRecord], workspace: str, limit: int) -> list[CallSummary]:
        """The newest calls of some pools, newest first."""
        newest_pools = sorted(pools, key=lambda pool: -pool.created_at)[:MAX_POOLS]
        found: dict[str, Found] = {}
        for inputs in await self._for_each_shard(newest_pools):
            for call, pool, count in inputs:
                found.setdefault(call, Found(call, pool)).inputs += count
        newest = sorted(found, key=lambda call: call[3:13], reverse=True)[:limit]
        return [await self._summary(found[call], workspace) for call in newest]

    async def _for_each_shard(self, pools: Sequence[PoolRecord]) -> list[list[tuple[str, str, int]]]:
        slots = asyncio.Semaphore(AT_ONCE)

        async def inputs_of(pool: str, shard: int) -> list[tuple[str, str, int]]:
            async with slots:
                stream = subjects.journal_stream(self._region, shard)
                info = await self._bus.stream_info(stream, subjects.calls_of_pool(self._region, shard, pool))
            counts = Counter(parse_call(subject).call for subject in info.subjects)
            return [(call, pool, count) for call, count in counts.items()]

        async with asyncio.TaskGroup() as tasks:
            work = [
                tasks.create_task(inputs_of(pool.pool, shard))
                for pool in pools
                for shard in range(self._bus.topology.shards)
            ]
        return [task.result() for task in work]

    async def one(self, call: str, workspace: str, index: int | None) -> dict[str, Any]:
        """A call in full: its summary, failed attempts and events. Raises `NotFoundError`, `OutputExpiredError`."""
        found = await self._find(call)
        summary = await self._summary(found, workspace)
        if found.first is None and not found.ended:
            raise self._results.missing(call, 0)
        attempts = [a for a in await self._attempts(call, workspace) if index in (None, a.index)]
        try:
            events, missing = await self._results.events(call, "*", workspace), ""
        except CopyAwayError as error:
            events, missing = [], error.message
        return {
            **to_wire(summary),
            **await self._letters_of(found, workspace),
            "pool": found.pool,
            "version": (await self._letters.function_of(found.function, workspace))[1],
            "module": await self._module_of(found.function, workspace),
            "input": input_of(found.first),
            "last_error": found.last_error,
            "waiting": self._waiting.text(found.pool) if summary.state == QUEUED else "",
            "attempts": [to_wire(attempt) for attempt in attempts[:MAX_LINES]],
            "history": [to_wire(event) for event in events if index in (None, event.index)][:MAX_LINES],
            "history_missing": missing,
        }

    async def _module_of(self, function_id: str, workspace: str) -> str:
        try:
            return (await self._directory.function(function_id, workspace)).spec.code.module
        except NotFoundError:
            return ""

    async def _letters_of(self, found: Found, workspace: str) -> dict[str, Any]:
        """Which inputs are dead letters, what became of them, and which one this call repeats."""
        there = await self._letters.subjects(workspace, call=found.call)
        dead = await self._letters.that_count(there[:MAX_LINES], workspace)
        if found.first is None and dead:
            # The journal has forgotten the call; its letters have not.
            letters = await self._letters.read([dead[0].subject])
            found.first = next((CallRequested.decode(each.request) for each in letters.values() if each.request), None)
        redriven = await self._letters.redriven_of_call(found.call, workspace) if dead else {}
        return {
            "dead_letters": [letter.subject.index for letter in dead],
            "redriven_to": [{"index": index, "call": into} for (_, index), into in sorted(redriven.items())],
            "redriven_from": await self._letters.origin(found.call, workspace),
        }

    async def _find(self, call: str) -> Found:
        stream = subjects.journal_stream(self._region, shard_of(call))
        info = await self._bus.stream_info(stream, subjects.calls_of(self._region, ANY_POOL, call))
        parsed = [parse_call(subject) for subject in info.subjects]
        return Found(call, parsed[0].owner if parsed else "", len(parsed))

    # ------------------------------------------------------------------ one call

    async def _summary(self, found: Found, workspace: str) -> CallSummary:
        found.first = await self._results.first_record(found.call, workspace, found.pool or ANY_POOL)
        await self._read_results(found, workspace)
        finished = sum(found.ended.values())
        found.inputs = max(found.inputs if found.first else 0, finished)
        if finished < found.inputs:
            found.started = await self._started(found, workspace)
        state = state_of(found.inputs, found.ended, started=found.started)
        first = found.first
        found.function = first.function if first else found.function
        return CallSummary(
            call=found.call,
            app=first.app if first else "",
            function=await self._directory.function_name(found.function, workspace),
            kind=first.kind if first else "",
            state=state,
            inputs=found.inputs,
            finished=finished,
            failed=finished - found.ended[Outcome.SUCCEEDED.value],
            accepted_at=first.accepted_at if first else created_at(found.call),
            ended_at=found.ended_at if finished and finished == found.inputs else None,
            error=found.error,
        )

    async def _read_results(self, found: Found, workspace: str) -> None:
        stream = subjects.results_stream(self._region, shard_of(found.call))
        async for stored in self._bus.read(stream, subjects.results_of(self._region, workspace, found.call)):
            found.add_result(CallResult.decode(stored.data))

    async def _started(self, found: Found, workspace: str) -> bool:
        if found.inputs > 1:
            return bool(found.ended)
        try:
            events = await self._results.events(found.call, 0, workspace)
        except CopyAwayError:
            return False
        return bool(events) and events[-1].event == "started"

    async def _attempts(self, call: str, workspace: str) -> list[AttemptFailed]:
        stream = subjects.attempts_stream(self._region, shard_of(call))
        wanted = subjects.attempts_of(self._region, workspace, call)
        return [AttemptFailed.decode(stored.data) async for stored in self._bus.read(stream, wanted)]


def input_of(first: CallRequested | None) -> dict[str, Any] | None:
    """What is known of an input without looking into it; None when it is no longer kept."""
    if first is None:
        return None
    size = blob_size(first.blob) if first.blob else len(first.payload)
    return {"encoding": first.encoding, "method": first.method, "bytes": size, "blob": first.blob}
