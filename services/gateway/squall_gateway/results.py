"""Reading what is recorded: results of inputs, the journal's records. Reads; never writes, never waits for a reply."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import cast

from squall.errors import NotFoundError, OutputExpiredError
from squall.ids import created_at, shard_of
from squall_bus import Bus, Stored
from squall_contracts import subjects
from squall_contracts.calls import CallEvent, CallRequested
from squall_contracts.retention import SPAWNED_S
from squall_gateway.call_headers import check_shard
from squall_gateway.single_copies import check_copy
from squall_service.clock import Clock

ANY_POOL = "*"


class Results:
    """The streams JOURNAL and RESULTS, by call."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock

    @property
    def region(self) -> str:
        """The region whose streams are read."""
        return self._bus.topology.region

    def check(self, call: str) -> str:
        """The call id itself. Raises `InvalidError` if it is not one of this cluster."""
        return check_shard(call, self._bus.topology.shards)

    async def journal_record(self, call: str, index: int, workspace: str) -> CallRequested | None:
        """What was accepted; None when it is not there (any more), or is of another workspace."""
        stream, subject = (
            subjects.journal_stream(self.region, shard_of(call)),
            subjects.call(self.region, ANY_POOL, call, index),
        )
        found = await self._bus.get_many(stream, [subject])
        for stored in found.values():
            record = CallRequested.decode(stored.data)
            if record.workspace == workspace:
                return record
        return None if found else await self._at_the_leader(stream, subject, workspace)

    async def _at_the_leader(self, stream: str, subject: str, workspace: str) -> CallRequested | None:
        """What a replica did not have: it may not have seen yet what was just acknowledged."""
        stored = await self._bus.get_last(stream, subject, from_leader=True)
        record = None if stored is None else CallRequested.decode(stored.data)
        return record if record is not None and record.workspace == workspace else None

    async def pool_of(self, call: str, index: int, workspace: str) -> str:
        """The pool of an input that has no result yet. Raises `NotFoundError` or `OutputExpiredError`."""
        record = await self.journal_record(call, index, workspace)
        if record is None:
            raise self.missing(call, index)
        return record.pool

    def missing(self, call: str, index: int) -> NotFoundError | OutputExpiredError:
        """What to say about an input of which there is neither journal nor result."""
        if self._clock.now() - created_at(call) > SPAWNED_S:
            return OutputExpiredError(f"the result of {call} is no longer kept")
        return NotFoundError(
            f"there is no call {call}" + (f" with an input {index}" if index else ""),
            fix="Check the id; `squall call list` shows recent calls.",
        )

    async def first_record(self, call: str, workspace: str, pool: str = ANY_POOL) -> CallRequested | None:
        """The lowest input in the journal: what all inputs of a call have in common."""
        stream = subjects.journal_stream(self.region, shard_of(call))
        wanted = subjects.calls_of(self.region, pool, call)
        async with closing(self._bus.read(stream, wanted)) as records:
            async for stored in records:
                record = CallRequested.decode(stored.data)
                return record if record.workspace == workspace else None
        return await self._at_the_leader(stream, wanted, workspace)

    async def count(self, call: str, workspace: str) -> int:
        """How many inputs of a call have ended."""
        stream = subjects.results_stream(self.region, shard_of(call))
        info = await self._bus.stream_info(stream, subjects.results_of(self.region, workspace, call))
        return len(info.subjects)

    async def count_until(self, call: str, workspace: str, cursor: int) -> int:
        """How many inputs of a call had ended when the record at `cursor` was written."""
        stream = subjects.results_stream(self.region, shard_of(call))
        wanted = subjects.results_of(self.region, workspace, call)
        found = 0
        async with closing(self._bus.read(stream, wanted, headers_only=True)) as records:
            async for stored in records:
                if stored.seq > cursor:
                    break
                found += 1
        return found

    async def inputs(self, call: str, workspace: str) -> int:
        """How many inputs a call has. Raises `NotFoundError` or `OutputExpiredError`."""
        ended = await self.count(call, workspace)
        if await self.first_record(call, workspace) is None:
            if not ended:
                raise self.missing(call, 0)
            return ended
        journal = subjects.journal_stream(self.region, shard_of(call))
        info = await self._bus.stream_info(journal, subjects.calls_of(self.region, ANY_POOL, call))
        return max(ended, len(info.subjects))

    async def exists(self, call: str, workspace: str) -> bool:
        """Whether a call was accepted: then it has a result, or the journal still has it."""
        if await self.count(call, workspace):
            return True
        return await self.journal_record(call, 0, workspace) is not None

    async def events(self, call: str, index: int | str, workspace: str) -> list[CallEvent]:
        """The readable history of an input (or of all, "*"): a hint, never the law. Raises `CopyAwayError`."""
        stream = subjects.events_stream(self.region, shard_of(call))
        await check_copy(self._bus, stream, "events")
        wanted = subjects.event(self.region, workspace, call, index)
        return [CallEvent.decode(stored.data) async for stored in self._bus.read(stream, wanted)]

    def follow(self, call: str, workspace: str, cursor: int) -> AbstractAsyncContextManager[AsyncIterator[Stored]]:
        """Results of a call as they are recorded, after a position in the stream."""
        return closing(
            self._bus.read(
                subjects.results_stream(self.region, shard_of(call)),
                subjects.results_of(self.region, workspace, call),
                start_seq=cursor + 1,
                follow=True,
            )
        )


def closing(stored: AsyncIterator[Stored]) -> AbstractAsyncContextManager[AsyncIterator[Stored]]:
    """What `Bus.read` gives, closed (with its consumer) when its reader leaves early."""
    return aclosing(cast("AsyncGenerator[Stored, None]", stored))
