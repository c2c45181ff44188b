"""Shard tail: keeps the open calls of one shard up to date, cheaply.

The server repeats every stored input and result on core subjects (`arrived`, `done`): listening costs about 6 us each,
a consumer 26 us. Such a message can be missed; the streams themselves are listed when we begin, after every reconnect,
when the journal's sequence shows a gap, and now and then. Listing costs 2 us an input, and only what is open is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager

from squall_bus import Bus, Message, Stored, Subscription
from squall_contracts import subjects
from squall_contracts.calls import DEADLINE_HEADER
from squall_scheduler.open_calls import Open, OpenCalls
from squall_service.telemetry import log

CHUNK = 256
SPARSE = 4
"""Open inputs are read one by one if they are fewer than a quarter of the journal, else by going through all of it."""
FAR = 4_102_444_800.0
"""A deadline for records without one (the year 2100)."""


class ShardTail:
    """One shard's JOURNAL and RESULTS, followed."""

    def __init__(self, bus: Bus, shard: int) -> None:
        self.open = OpenCalls()
        self.behind = True
        """Something may have been missed: `sync` before anything is concluded."""
        self.journal_seq = 0
        """The newest input that was seen."""
        self._seen_before: int | None = None
        """The journal's last sequence at the check before."""
        self._bus = bus
        self._region = bus.topology.region
        self.shard = shard
        self._journal = subjects.journal_stream(self._region, shard)
        self._results = subjects.results_stream(self._region, shard)
        self._calls = subjects.calls_of_pool(self._region, shard, "*")
        self._others: set[int] = set()
        self._others_on_their_way = 0
        self._closed: set[str] | None = None
        """While listing: what was closed meanwhile, so that an older list does not open it again."""
        self._arrived: list[tuple[str, str, Open]] = []
        """While listing: what was accepted meanwhile, to be added behind what is older."""
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Listen. Then `sync`."""
        arrivals = subjects.every_arrival(self._region, self.shard)
        ends = subjects.every_done(self._region, self.shard)
        self._subscriptions = [
            await self._bus.subscribe(arrivals, self.on_arrived, in_bunches=True),
            await self._bus.subscribe(ends, self.on_done, in_bunches=True),
        ]

    async def close(self) -> None:
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions.clear()

    # ------------------------------------------------------------------ live

    def on_arrived(self, message: Message) -> None:
        """An input was stored."""
        headers = message.headers
        seq = int(headers.get("Nats-Sequence", "0"))
        self._pass_others()
        if self.journal_seq and seq > self.journal_seq + 1 + self._others_on_their_way:
            self.behind = True
        self.journal_seq = max(self.journal_seq, seq)
        self._pass_others()
        pool, key = pool_and_key(message.subject)
        call = Open(seq, deadline_in(headers))
        if self._closed is None:
            self.open.add(pool, key, call)
        else:
            self._arrived.append((pool, key, call))

    @contextmanager
    def another(self) -> Iterator[Callable[[int], None]]:
        """While something else than an input is written to the journal: its sequence is no gap. Call what is given
        with it."""
        self._others_on_their_way += 1
        try:
            yield self._others.add
        finally:
            self._others_on_their_way -= 1
            self._pass_others()

    def _pass_others(self) -> None:
        while self.journal_seq + 1 in self._others:
            self.journal_seq += 1
        self._others = {seq for seq in self._others if seq > self.journal_seq}

    def on_done(self, message: Message) -> None:
        """A result was stored."""
        key = pool_and_key(message.subject)[1]
        self.open.close(key)
        if self._closed is not None:
            self._closed.add(key)

    # ------------------------------------------------------------------ catching up

    async def sync(self) -> None:
        """Find out what is open, from the streams."""
        closed: set[str] = set()
        self.open, self._closed, self._arrived, self.behind = OpenCalls(), closed, [], False
        self.journal_seq = 0
        try:
            found = await self._unended()
        except BaseException:
            self.behind = True
            raise
        finally:
            self._closed = None
        for pool, key, call in sorted(found, key=lambda each: each[2].seq) + self._arrived:
            if key not in closed:
                self.open.add(pool, key, call)
        self._arrived = []
        log.debug("shard_synced", shard=self.shard, open=len(self.open))

    async def _unended(self) -> list[tuple[str, str, Open]]:
        """The inputs that have no result."""
        journal = await self._bus.stream_info(self._journal, self._calls)
        self.journal_seq = max(self.journal_seq, journal.last_seq)
        if not journal.subjects:
            return []
        results = await self._bus.stream_info(self._results, f"results.{self._region}.>")
        ended = await asyncio.to_thread(keys_of, results.subjects)
        unended = await asyncio.to_thread(without, journal.subjects, ended)
        return [opened(stored) async for stored in self._records(unended, journal.messages)]

    async def _records(self, unended: dict[str, str], messages: int) -> AsyncIterator[Stored]:
        """Their records, for what only those say: the deadlines."""
        if len(unended) * SPARSE < messages or len(unended) <= CHUNK:
            wanted = list(unended.values())
            for start in range(0, len(wanted), CHUNK):
                some = wanted[start : start + CHUNK]
                found = await self._bus.get_many(self._journal, some)
                for subject in some:
                    stored = found.get(subject) or await self._bus.get_last(self._journal, subject, from_leader=True)
                    if stored is not None:
                        yield stored
            return
        async for stored in self._bus.read(self._journal, headers_only=True):
            if pool_and_key(stored.subject)[1] in unended:
                yield stored

    async def check_progress(self) -> int:
        """Notice when the journal has gone on without us. Returns its last sequence."""
        last_seq = (await self._bus.stream_info(self._journal)).last_seq
        # What was stored a moment ago may still be on its way to us.
        if self._seen_before is not None and self._seen_before > self.journal_seq:
            self.behind = True
        self._seen_before = last_seq
        return last_seq


def opened(stored: Stored) -> tuple[str, str, Open]:
    """Pool, key and what is kept of a journal record."""
    pool, key = pool_and_key(stored.subject)
    return pool, key, Open(stored.seq, deadline_in(stored.headers))


def deadline_in(headers: Mapping[str, str]) -> float:
    """The deadline of an input; one that cannot be read is none."""
    try:
        return float(headers[DEADLINE_HEADER])
    except (KeyError, ValueError):
        return FAR


def pool_and_key(subject: str) -> tuple[str, str]:
    """The fourth token (pool or workspace) and `<call>.<index>` of a subject about an input."""
    _, _, _, owner, key = subject.split(".", 4)
    return owner, key


def keys_of(found: dict[str, int]) -> set[str]:
    """The keys of many subjects; in a thread, because there may be a million."""
    return {subject.split(".", 4)[4] for subject in found}


def without(journal: dict[str, int], ended: set[str]) -> dict[str, str]:
    """Subjects by key of what has not ended."""
    return {key: subject for subject in journal if (key := subject.split(".", 4)[4]) not in ended}
