"""Log lines of apps and builds: history, then what comes, one JSON line each. Reads LOGS by subject; writes nothing.

A cursor names the last line that was read, `<sequence>.<line>`: who comes back with it misses nothing and gets nothing
twice.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from squall.errors import InvalidError
from squall.http_api.traces import LogEntry
from squall.spec import to_wire
from squall_bus import Bus, Stored
from squall_contracts import subjects
from squall_contracts.envelope import BadMessage
from squall_contracts.logs import LogLines
from squall_gateway.directory import Directory
from squall_gateway.results import closing
from squall_gateway.single_copies import check_copy
from squall_service.telemetry import log

ANY = "*"
QUIET_S = 0.2
"""After so long without a line it is asked whether the app is over. Its lines are stored before its claims go."""
AHEAD = 1000
"""Lines read ahead of a slow client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """Which lines."""

    app: str
    """App id, or image id for a build."""
    workspace: str
    call: str = ""
    function: str = ""
    """Name or id of a function."""
    stream: str = ""
    since: float = 0.0
    until: float = 0.0
    """0 = no end."""
    search: str = ""
    """Part of the line, whatever its case."""
    cursor: tuple[int, int] = (0, -1)
    """Stream sequence and line of the last one read."""

    def wants(self, entry: LogEntry, lines: LogLines) -> bool:
        """Whether a line is asked for."""
        return (
            entry.at >= self.since
            and (not self.until or entry.at <= self.until)
            and self.search.casefold() in entry.text.casefold()
            and self.stream in ("", entry.stream)
            and self.function in ("", entry.function, lines.function)
        )


def parse_cursor(text: str) -> tuple[int, int]:
    """The position that a cursor names. Raises `InvalidError`."""
    if not text:
        return 0, -1
    sequence, _, line = text.partition(".")
    if not sequence.isdigit() or not (line or "0").isdigit() or len(text) > 40:
        raise InvalidError(f"cursor {text!r} is not one that this API gave")
    return int(sequence), int(line) if line else -1


class Logs:
    """Reads log streams."""

    def __init__(self, bus: Bus, directory: Directory) -> None:
        self._bus = bus
        self._directory = directory

    async def history(self, query: LogQuery, tail: int | None = None) -> AsyncGenerator[LogEntry, None]:
        """What is there now; only the last `tail` lines if that is given."""
        async with aclosing(self._read(query, follow=False)) as entries:
            if tail is None:
                async for entry in entries:
                    yield entry
                return
            kept: deque[LogEntry] = deque(maxlen=max(tail, 0))
            async for entry in entries:
                kept.append(entry)
        for entry in kept:
            yield entry

    async def follow(self, query: LogQuery, over: Callable[[], bool]) -> AsyncGenerator[LogEntry, None]:
        """What comes after the query's cursor, until `over` says that nothing comes any more."""
        found: asyncio.Queue[LogEntry] = asyncio.Queue(AHEAD)
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self._pump(query, found))
            while True:
                try:
                    async with asyncio.timeout(QUIET_S):
                        entry = await found.get()
                except TimeoutError:
                    if over():
                        reading.cancel()
                        break
                else:
                    query = replace(query, cursor=parse_cursor(entry.cursor))
                    yield entry
        # It may have ended a moment ago: its last lines are stored, and may not have come by yet.
        async with aclosing(self._read(query, follow=False)) as last:
            async for entry in last:
                yield entry

    async def _pump(self, query: LogQuery, found: asyncio.Queue[LogEntry]) -> None:
        async with aclosing(self._read(query, follow=True)) as entries:
            async for entry in entries:
                await found.put(entry)

    async def end(self, app: str) -> tuple[int, int]:
        """The cursor behind everything that is there now."""
        topology = self._bus.topology
        shard = subjects.shard_of_name(app, topology.shards)
        info = await self._bus.stream_info(subjects.logs_stream(topology.region, shard))
        return info.last_seq + 1, -1

    async def _read(self, query: LogQuery, *, follow: bool) -> AsyncGenerator[LogEntry, None]:
        topology = self._bus.topology
        shard = subjects.shard_of_name(query.app, topology.shards)
        wanted = subjects.logs_of_app(topology.region, shard, query.app)
        if query.call:
            wanted = subjects.log(topology.region, shard, query.app, ANY, query.call)
        sequence, line = query.cursor
        stream = subjects.logs_stream(topology.region, shard)
        if not follow:
            await check_copy(self._bus, stream, "logs")
        stored_lines = self._bus.read(
            stream,
            wanted,
            start_seq=max(1, sequence),
            follow=follow,
        )
        async with closing(stored_lines) as records:
            async for stored in records:
                skip = line + 1 if stored.seq == sequence else 0
                for entry in await self._entries(query, stored, skip):
                    yield entry

    async def _entries(self, query: LogQuery, stored: Stored, skip: int) -> list[LogEntry]:
        try:
            lines = LogLines.decode(stored.data)
        except BadMessage as error:
            log.warning("log_lines_not_understood", subject=stored.subject, reason=error.message)
            return []
        function = await self._directory.function_name(lines.function, query.workspace)
        entries = []
        for number, (at, stream, text) in enumerate(lines.lines):
            entry = LogEntry(
                at=float(str(at)),
                stream=str(stream),
                text=str(text),
                app=lines.app,
                function=function,
                container=lines.container,
                call=lines.call,
                index=lines.index,
                cursor=f"{stored.seq}.{number}",
            )
            if number >= skip and query.wants(entry, lines):
                entries.append(entry)
        return entries


def as_line(entry: LogEntry) -> bytes:
    """One line of NDJSON."""
    return json.dumps(to_wire(entry), separators=(",", ":")).encode() + b"\n"
