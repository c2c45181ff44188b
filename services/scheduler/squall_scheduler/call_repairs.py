"""Call repairs: looks at single inputs of a shard that something may be wrong with, and mends them.

Reads what the streams say of each, asks the policy, and writes: a result `expired`, or the input back into its queue.
Every write loses against what somebody else has written first.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

from squall.errors import InvalidError
from squall_bus import Bus, BusError, Published, Stored, SubjectTaken, WrongRevision
from squall_contracts import subjects
from squall_contracts.calls import CallRequested, CallResult
from squall_scheduler import call_records
from squall_scheduler.facts import Facts
from squall_scheduler.policy.reconciling import PATIENCE_S, Expire, Leave, Requeue, judge
from squall_scheduler.shard_tail import ShardTail
from squall_scheduler.state import PoolId, Sighting
from squall_service.clock import Clock
from squall_service.failpoints import failpoint
from squall_service.telemetry import log

PURGES_AT_ONCE = 32
MISSED_S = 10 * PATIENCE_S
RECENT_S = 1.0
"""An input that is not in its queue is looked for once more before anything is read about it: most have just ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Inputs of one pool to look at."""

    pool: PoolId
    keys: tuple[str, ...]
    delivered_seq: int
    """Of the pool's consumer: what lies behind it in WORK was given to nobody yet."""


class CallRepairs:
    """The repairs of one shard, and what they remember of inputs that are not to be touched yet."""

    def __init__(self, bus: Bus, facts: Facts, clock: Clock, tail: ShardTail, counts: Counter[str]) -> None:
        self._bus = bus
        self._facts = facts
        self._clock = clock
        self._tail = tail
        self._counts = counts
        self._region = bus.topology.region
        self._work = subjects.work_stream(self._region, tail.shard)
        self._journal = subjects.journal_stream(self._region, tail.shard)
        self._results = subjects.results_stream(self._region, tail.shard)
        self._missing_since: dict[str, float] = {}
        self._postponed: dict[str, float] = {}

    def not_postponed(self, keys: list[str]) -> list[str]:
        """Those that are to be looked at now."""
        now = self._clock.now()
        return [key for key in keys if self._postponed.get(key, 0.0) <= now]

    def forget_past(self) -> None:
        """Postponements that are over, and inputs that were missed long ago and have ended since."""
        now = self._clock.now()
        self._postponed = {key: until for key, until in self._postponed.items() if until > now}
        self._missing_since = {key: at for key, at in self._missing_since.items() if now - at < MISSED_S}

    # ------------------------------------------------------------------ looking

    async def examine(self, case: Case) -> None:
        """Decide on each input, and act."""
        names = {key: self._subject(case.pool, key) for key in case.keys}
        queued = await self._bus.get_many(self._work, list(names.values()))
        now = self._clock.now()
        doubtful = []
        for key, subject in names.items():
            if subject in queued:
                self._missing_since.pop(key, None)
                if self._tail.open.is_due(case.pool, key, now):
                    doubtful.append(key)
            elif now >= self._missing_since.setdefault(key, now) + RECENT_S:
                doubtful.append(key)
        if doubtful:
            await self._settle(case, doubtful, {key: queued.get(names[key]) for key in doubtful})

    async def _settle(self, case: Case, keys: list[str], queued: dict[str, Stored | None]) -> None:
        """Read the law about the doubtful ones: journal and results."""
        names = {key: self._subject(case.pool, key) for key in keys}
        accepted = await self._bus.get_many(self._journal, list(names.values()))
        for subject in names.values() - accepted.keys():
            # Nobody would look at it again: a replica that has not seen it yet must not have the last word.
            stored = await self._bus.get_last(self._journal, subject, from_leader=True)
            if stored is not None:
                accepted[subject] = stored
        requests = {key: request for key in keys if (request := decoded(accepted.get(names[key]))) is not None}
        ended = await self._ended(requests)
        for key in keys:
            if key not in requests or key in ended:
                self._close(case.pool, key)  # it has a result, or its time is over and the journal has forgotten it
        undecided = [key for key in keys if key in requests and key not in ended]
        await asyncio.gather(
            *(self._decide(case, key, requests[key], accepted[names[key]], queued[key]) for key in undecided)
        )

    async def _ended(self, requests: dict[str, CallRequested]) -> set[str]:
        names = {
            subjects.result(self._region, request.workspace, request.call, request.index): key
            for key, request in requests.items()
        }
        return {names[subject] for subject in await self._bus.get_many(self._results, list(names))}

    async def _has_result(self, subject: str) -> bool:
        """For an input that cannot be read, and so does not say whose it is."""
        call = subjects.parse_call(subject)
        anybody = subjects.result(self._region, "*", call.call, call.index)
        return bool((await self._bus.stream_info(self._results, anybody)).subjects)

    async def _decide(
        self, case: Case, key: str, request: CallRequested, accepted: Stored, queued: Stored | None
    ) -> None:
        now = self._clock.now()
        seen = Sighting(
            deadline=request.deadline,
            over_at=call_records.over_at(accepted),
            queued=queued is not None,
            delivered=queued is not None and queued.seq <= case.delivered_seq,
            missing_since=self._missing_since.get(key, now),
            pool_alive=self._facts.has_container(case.pool),
        )
        match judge(seen, now):
            case Expire(reason=reason):
                await self._expire(case.pool, key, request, reason)
            case Requeue(reason=reason):
                await self._requeue(key, request, accepted, reason)
            case Leave(until=until):
                self._postponed[key] = until

    # ------------------------------------------------------------------ mending

    async def _expire(self, pool: PoolId, key: str, request: CallRequested, reason: str) -> None:
        """Keep it as a dead letter, record, then reply, then take it off the queue."""
        result = call_records.expired(request, self._clock.now(), self._facts.waiting(pool))
        record = call_records.result_record(self._region, result, request, self._facts.declared.spec(pool))
        if not await self._keep_letter(request, result, record.ttl_s):
            return
        (outcome,) = await self._bus.publish_batch([record])
        failpoint("scheduler.expired")
        if isinstance(outcome, Published) and request.reply_to:
            self._bus.send(request.reply_to, record.data)
        if isinstance(outcome, BusError) and not isinstance(outcome, SubjectTaken):
            log.warning("call_not_expired", call=request.call, index=request.index, reason=repr(outcome))
            return
        if isinstance(outcome, Published):
            self._counts["expired"] += 1
            log.info("call_expired", call=request.call, index=request.index, pool=pool, reason=reason)
        await self._bus.purge(self._work, self._subject(pool, key))
        self._close(pool, key)

    async def _keep_letter(self, request: CallRequested, result: CallResult, kept_s: float | None) -> bool:
        """Whether the result may be recorded now."""
        letter = call_records.letter_record(self._region, request, result, kept_s)
        if letter is None:
            return True
        (outcome,) = await self._bus.publish_batch([letter])
        if isinstance(outcome, Published | SubjectTaken):
            return True
        log.warning("call_not_expired", call=request.call, index=request.index, reason=repr(outcome))
        return False

    async def _requeue(self, key: str, request: CallRequested, accepted: Stored, reason: str) -> None:
        record = call_records.back_to_queue(self._region, request, accepted, self._clock.now())
        try:
            await self._bus.publish(record.subject, record.data, headers=record.headers, ttl_s=record.ttl_s)
        except WrongRevision:
            pass  # it is there
        else:
            failpoint("scheduler.requeued")
            self._counts["requeued"] += 1
            log.warning("call_requeued", call=request.call, index=request.index, pool=request.pool, reason=reason)
        self._missing_since.pop(key, None)

    async def put_back(self, pool: PoolId, key: str, reason: str) -> None:
        """Take it out of WORK, and put it back as a new message. Not if it has ended."""
        subject = self._subject(pool, key)
        accepted = await self._bus.get_last(self._journal, subject, from_leader=True)
        request = decoded(accepted)
        if accepted is None or request is None or await self._ended({key: request}):
            return
        await self._bus.purge(self._work, subject)
        await self._requeue(key, request, accepted, reason)

    async def take_out(self, ended: list[str]) -> None:
        """Remove these subjects from WORK, each if it really has a result."""
        requests, unreadable = {}, []
        for subject, stored in (await self._bus.get_many(self._work, ended)).items():
            if (request := decoded(stored)) is not None:
                requests[subject] = request
            else:
                unreadable.append(subject)
        done = sorted(await self._ended(requests)) + [each for each in unreadable if await self._has_result(each)]
        for start in range(0, len(done), PURGES_AT_ONCE):
            some = done[start : start + PURGES_AT_ONCE]
            removed = await asyncio.gather(*(self._bus.purge(self._work, subject) for subject in some))
            self._counts["taken_out"] += sum(removed)
        if done:
            log.info("ended_calls_taken_out", stream=self._work, calls=len(done))

    def _close(self, pool: PoolId, key: str) -> None:
        self._tail.open.close(key, pool)
        self._missing_since.pop(key, None)
        self._postponed.pop(key, None)

    def _subject(self, pool: str, key: str) -> str:
        call, _, index = key.rpartition(".")
        return subjects.call(self._region, pool, call, int(index))


def decoded(stored: Stored | None) -> CallRequested | None:
    """The accepted input in a record; None without one, or with one that nobody can run."""
    if stored is None:
        return None
    try:
        return CallRequested.decode(stored.data)
    except InvalidError:
        return None
