"""Dead letters: lists them and reads them. Writes nothing; who records the failure writes the letter.

Subjects are the index: they carry app, call, input and time, so a list costs a listing of subjects (2 us each) and one
read for each row that is shown. A letter counts only once RESULTS has the ending that it is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from squall.errors import NotFoundError
from squall.http_api.calls import LetterInfo
from squall.ids import created_at, shard_of
from squall_bus import Bus
from squall_contracts import subjects
from squall_contracts.calls import CallResult
from squall_contracts.letters import DEAD, DeadLetter, Redriven
from squall_contracts.subjects import LetterSubject
from squall_gateway.directory import Directory

Key = tuple[str, int]
"""Call and index."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A letter that counts: its subject, and the result that it is about."""

    subject: LetterSubject
    result: CallResult

    @property
    def key(self) -> Key:
        return self.subject.call, self.subject.index


class Letters:
    """The stream LETTERS, read."""

    def __init__(self, bus: Bus, directory: Directory) -> None:
        self._bus = bus
        self._directory = directory
        self._region = bus.topology.region
        self._stream = subjects.letters_stream(self._region)

    # ------------------------------------------------------------------ lists

    async def newest(self, workspace: str, app: str, since: float, limit: int) -> tuple[list[LetterInfo], int]:
        """Rows of a list, what failed last first; and how many there are in all."""
        there = await self.subjects(workspace, app or "*", since=since)
        there.reverse()
        found: list[Letter] = []
        for start in range(0, len(there), limit):
            found += await self.that_count(there[start : start + limit], workspace)
            if len(found) >= limit:
                break
        rows = found[:limit]
        links = await self.redriven([letter.key for letter in rows], workspace)
        return [await self._row(letter, links.get(letter.key), workspace) for letter in rows], len(there)

    async def subjects(
        self, workspace: str, app: str = "*", call: str = "*", *, since: float = 0.0
    ) -> list[LetterSubject]:
        """Subjects of letters, oldest failure first, one for each input: the last one if there are several."""
        info = await self._bus.stream_info(self._stream, subjects.letters_of(self._region, workspace, app, call))
        last: dict[Key, LetterSubject] = {}
        for text in info.subjects:
            parsed = subjects.parse_letter(text)
            known = last.get((parsed.call, parsed.index))
            if parsed.failed_at_ms >= since * 1000 and (known is None or known.failed_at_ms < parsed.failed_at_ms):
                last[parsed.call, parsed.index] = parsed
        return sorted(last.values(), key=position)

    async def that_count(self, some: Sequence[LetterSubject], workspace: str) -> list[Letter]:
        """Those whose input really ended badly. Others were written by an agent that died before it could record."""
        by_shard: dict[int, list[LetterSubject]] = {}
        for each in some:
            by_shard.setdefault(shard_of(each.call), []).append(each)
        results: dict[Key, CallResult] = {}
        for shard, of_shard in by_shard.items():
            wanted = [subjects.result(self._region, workspace, each.call, each.index) for each in of_shard]
            for stored in (await self._bus.get_many(subjects.results_stream(self._region, shard), wanted)).values():
                result = CallResult.decode(stored.data)
                results[result.call, result.index] = result
        found = ((each, results.get((each.call, each.index))) for each in some)
        return [Letter(each, result) for each, result in found if result is not None and result.outcome in DEAD]

    async def _row(self, letter: Letter, into: str | None, workspace: str) -> LetterInfo:
        result, subject = letter.result, letter.subject
        name, version = await self.function_of(result.function, workspace)
        error = result.error or {}
        return LetterInfo(
            call=result.call,
            index=result.index,
            app=subject.app,
            function=name,
            version=version,
            outcome=result.outcome,
            error=f"{error.get('type', '')}: {error.get('message', '')}",
            accepted_at=created_at(result.call),
            failed_at=result.ended_at,
            redriven_to=into or "",
        )

    async def function_of(self, function_id: str, workspace: str) -> tuple[str, int]:
        """Name and version of a function; its id and 0 when it is not known any more."""
        try:
            record = await self._directory.function(function_id, workspace)
        except NotFoundError:
            return function_id, 0
        return record.spec.name, record.version

    async def options_of(self, function_id: str, workspace: str) -> str:
        """What its caller wanted otherwise than declared; empty for nothing."""
        return (await self._directory.function(function_id, workspace)).options

    # ------------------------------------------------------------------ one

    async def read(self, some: Iterable[LetterSubject]) -> dict[Key, DeadLetter]:
        """The letters themselves, with their inputs."""
        stored = await self._bus.get_many(self._stream, [each.subject for each in some])
        letters = [DeadLetter.decode(each.data) for each in stored.values()]
        return {(letter.call, letter.index): letter for letter in letters}

    async def redriven(self, keys: Iterable[Key], workspace: str) -> dict[Key, str]:
        """Into which calls these inputs were redriven, those that were."""
        wanted = [subjects.redrive(self._region, workspace, call, index) for call, index in keys]
        links = [Redriven.decode(each.data) for each in (await self._bus.get_many(self._stream, wanted)).values()]
        return {(link.call, link.index): link.into for link in links}

    async def link(self, letter: DeadLetter) -> str:
        """Into which call a letter was redriven. Somebody has just written that; raises `NotFoundError` otherwise."""
        subject = subjects.redrive(self._region, letter.workspace, letter.call, letter.index)
        stored = await self._bus.get_last(self._stream, subject, from_leader=True)
        if stored is None:
            raise NotFoundError(f"the redrive of {letter.call} is not known")
        return Redriven.decode(stored.data).into

    async def redriven_of_call(self, call: str, workspace: str) -> dict[Key, str]:
        """The same for all inputs of a call."""
        wanted = subjects.redrive(self._region, workspace, call, "*")
        links = [Redriven.decode(stored.data) async for stored in self._bus.read(self._stream, wanted)]
        return {(link.call, link.index): link.into for link in links if link.into != call}

    async def origin(self, call: str, workspace: str) -> str:
        """`<call>.<index>` of the dead letter that a call repeats; empty for any other call."""
        stored = await self._bus.get_last(self._stream, subjects.redriven_from(self._region, workspace, call))
        if stored is None:
            return ""
        link = Redriven.decode(stored.data)
        return f"{link.call}.{link.index}"


def position(subject: LetterSubject) -> tuple[int, str, int]:
    """Where a letter stands among all: by time, then by input."""
    return subject.failed_at_ms, subject.call, subject.index
