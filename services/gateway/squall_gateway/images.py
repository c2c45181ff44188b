"""Images: asks for what is not built, tells how builds go. The builder builds, and owns the bucket `images`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from squall import errors
from squall.http_api.traces import LogEntry
from squall.spec import ImageSpec
from squall_bus import Bus, SubjectTaken
from squall_contracts import subjects
from squall_contracts.builds import (
    BUILDING,
    FAILED,
    GONE,
    IMAGES,
    READY,
    BuildImage,
    ImageRecord,
    image_asked_key,
    image_user_key,
    scoped,
)
from squall_gateway.image_sources import ImageSources
from squall_gateway.logs import LogQuery, Logs, as_line, parse_cursor
from squall_service.clock import Clock

POLL_S = 0.05
ASKED_AGAIN_S = 1.0
NOTED_S = 60.0
"""How exactly it is known when somebody asked last for an image that was there."""
UNCHANGED_S = 10.0
"""A failure that is still the same record after this time is the answer: the builder saw no reason to try again."""


class Images:
    """Asks builders, and follows what they do."""

    def __init__(self, bus: Bus, logs: Logs, sources: ImageSources, clock: Clock) -> None:
        self._bus = bus
        self._bucket = bus.kv(IMAGES)
        self._logs = logs
        self._sources = sources
        self._clock = clock

    async def ensure(
        self, wanted: ImageSpec, workspace: str, traceparent: str, environment: str = "main"
    ) -> AsyncGenerator[bytes, None]:
        """JSON lines: the build's log as it comes, then what became of it."""
        spec = scoped(wanted, workspace, environment)
        await self._sources.check(spec, workspace=workspace)
        revision, record = await self._known(spec.id)
        await self._asked_too(spec.id, record, workspace)
        if record is not None and record.state == READY:
            await self._note(spec.id)
            yield last_line(record)
            return
        now = self._clock.now()
        command = await ask_for(self._bus, spec, workspace, now, traceparent)
        query = LogQuery(app=spec.id, workspace=workspace, since=_log_start(record, now))
        stale = revision if record is not None and record.state == FAILED else 0
        found: asyncio.Queue[LogEntry | ImageRecord] = asyncio.Queue(100)
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(self._follow(query, found))
            tasks.create_task(self._watch(command, stale, found))
            while isinstance(item := await found.get(), LogEntry):
                query = replace(query, cursor=parse_cursor(item.cursor))
                yield as_line(item)
            following.cancel()
        # The builder stores its log before the record: what was not followed yet is there now.
        async with aclosing(self._logs.history(query)) as rest:
            async for entry in rest:
                yield as_line(entry)
        yield last_line(item)

    async def _asked_too(self, image: str, record: ImageRecord | None, workspace: str) -> None:
        """Who has the whole recipe may see the image, also if another workspace asked first, or does at the moment."""
        if record is None or record.workspace not in ("", workspace):
            await self._bucket.put(image_user_key(workspace, image), b"1")

    async def _known(self, image: str) -> tuple[int, ImageRecord | None]:
        entry = await self._bucket.get(image)
        return (0, None) if entry is None else (entry.revision, ImageRecord.decode(entry.value))

    async def _follow(self, query: LogQuery, found: asyncio.Queue[LogEntry | ImageRecord]) -> None:
        async with aclosing(self._logs.follow(query, lambda: False)) as entries:
            async for entry in entries:
                await found.put(entry)

    async def _note(self, image: str) -> None:
        """For `squall image prune --older-than`."""
        key = image_asked_key(image)
        before = await self._bucket.get(key)
        if before is None or self._clock.now() - float(before.value) > NOTED_S:
            await self._bucket.put(key, str(self._clock.now()).encode())

    async def _watch(self, command: BuildImage, stale: int, found: asyncio.Queue[LogEntry | ImageRecord]) -> None:
        """Until the build that was asked for has ended. `stale`: revision of the failure that was there before."""
        asked_at = self._clock.monotonic()
        until = asked_at + UNCHANGED_S
        while True:
            revision, record = await self._known(command.image)
            if (record is None or record.state in GONE) and self._clock.monotonic() > asked_at + ASKED_AGAIN_S:
                # A builder may have found the image there just before it was pruned.
                asked_at = self._clock.monotonic()
                await _send(self._bus, command)
            ended = record if record is not None and record.state in (READY, FAILED) else None
            if ended is not None and (revision != stale or self._clock.monotonic() > until):
                await found.put(ended)
                return
            await self._clock.sleep(POLL_S)


async def ask_for(bus: Bus, spec: ImageSpec, workspace: str, now: float, traceparent: str = "") -> BuildImage:
    """Have an image built; what was asked. `spec` as `scoped` makes it."""
    command = BuildImage(image=spec.id, spec=spec, requested_at=now, traceparent=traceparent, workspace=workspace)
    await _send(bus, command)
    return command


async def _send(bus: Bus, command: BuildImage) -> None:
    try:
        await bus.publish(subjects.build(bus.topology.region, command.image), command.encode())
    except SubjectTaken:
        pass  # somebody has asked already, and we wait for the same build


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
