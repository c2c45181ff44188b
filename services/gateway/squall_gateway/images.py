"""Images: asks for what is not built, tells how builds go. The builder builds, and owns the bucket `images`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from squall import errors
from squall.http_api import LogEntry
from squall.spec import ImageSpec
from squall_bus import Bus, SubjectTaken
from squall_contracts import subjects
from squall_contracts.builds import IMAGES, BuildImage, ImageRecord
from squall_gateway.logs import LogQuery, Logs, as_line, parse_cursor
from squall_service.clock import Clock

BUILDING, READY, FAILED = "building", "ready", "failed"
POLL_S = 0.05
UNCHANGED_S = 10.0
"""A failure that is still the same record after this time is the answer: the builder saw no reason to try again."""


class Images:
    """Asks builders, and follows what they do."""

    def __init__(self, bus: Bus, logs: Logs, clock: Clock) -> None:
        self._bus = bus
        self._bucket = bus.kv(IMAGES)
        self._logs = logs
        self._clock = clock

    async def ensure(self, spec: ImageSpec, workspace: str, traceparent: str) -> AsyncGenerator[bytes, None]:
        """JSON lines: the build's log as it comes, then what became of it."""
        revision, record = await self._known(spec.id)
        if record is not None and record.state == READY:
            yield last_line(record)
            return
        now = self._clock.now()
        await self._ask(
            BuildImage(image=spec.id, spec=spec, requested_at=now, traceparent=traceparent, workspace=workspace)
        )
        query = LogQuery(app=spec.id, workspace=workspace, since=_log_start(record, now))
        stale = revision if record is not None and record.state == FAILED else 0
        found: asyncio.Queue[LogEntry | ImageRecord] = asyncio.Queue(100)
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(self._follow(query, found))
            tasks.create_task(self._watch(spec.id, stale, found))
            while isinstance(item := await found.get(), LogEntry):
                query = replace(query, cursor=parse_cursor(item.cursor))
                yield as_line(item)
            following.cancel()
        # The builder stores its log before the record: what was not followed yet is there now.
        async with aclosing(self._logs.history(query)) as rest:
            async for entry in rest:
                yield as_line(entry)
        yield last_line(item)

    async def _known(self, image: str) -> tuple[int, ImageRecord | None]:
        entry = await self._bucket.get(image)
        return (0, None) if entry is None else (entry.revision, ImageRecord.decode(entry.value))

    async def _ask(self, command: BuildImage) -> None:
        try:
            await self._bus.publish(subjects.build(self._bus.topology.region, command.image), command.encode())
        except SubjectTaken:
            pass  # somebody has asked already, and we wait for the same build

    async def _follow(self, query: LogQuery, found: asyncio.Queue[LogEntry | ImageRecord]) -> None:
        async with aclosing(self._logs.follow(query, lambda: False)) as entries:
            async for entry in entries:
                await found.put(entry)

    async def _watch(self, image: str, stale: int, found: asyncio.Queue[LogEntry | ImageRecord]) -> None:
        """Until the build that was asked for has ended. `stale`: revision of the failure that was there before."""
        until = self._clock.monotonic() + UNCHANGED_S
        while True:
            revision, record = await self._known(image)
            ended = record if record is not None and record.state in (READY, FAILED) else None
            if ended is not None and (revision != stale or self._clock.monotonic() > until):
                await found.put(ended)
                return
            await self._clock.sleep(POLL_S)


def _log_start(record: ImageRecord | None, now: float) -> float:
    """Lines of earlier builds of the same image are not repeated."""
    if record is None:
        return 0.0
    return record.updated_at if record.state == BUILDING else now


def last_line(record: ImageRecord) -> bytes:
    """`{"image": id}`, or `{"error": ...}`."""
    if record.state == READY:
        return json.dumps({"image": record.image}).encode() + b"\n"
    wire = dict(record.error) or errors.to_wire(errors.ImageBuildError(f"image {record.image} was not built"))
    return json.dumps({"error": wire}, default=str).encode() + b"\n"
