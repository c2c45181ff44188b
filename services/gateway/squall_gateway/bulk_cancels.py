"""Bulk cancels: cancels of many inputs, as tasks of the gateway that go on when their client's connection breaks.

Owns the running ones, by the name that the client gave them: the same request again joins the cancel that runs, so its
count is not lost. What is cancelled, and the counts, are those of `squall_gateway.cancels`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from squall import errors
from squall.errors import InvalidError, SquallError
from squall.http_api.calls import CancelMany
from squall_gateway.answers import public
from squall_gateway.cancels import Cancels, Tally
from squall_gateway.directory import Directory
from squall_gateway.results import Results
from squall_service.clock import Clock
from squall_service.telemetry import log

PROGRESS_S = 1.0
KEPT_S = 600.0
"""How long the outcome of a cancel is kept for a client that lost its connection."""
MAX_NAME_CHARS = 64


@dataclass(slots=True)
class Job:
    """One bulk cancel."""

    tally: Tally
    name: str = field(default_factory=lambda: secrets.token_hex(6))
    """Ours: another one under the same request means that the gateway was restarted in between."""
    done: asyncio.Event = field(default_factory=asyncio.Event)
    error: SquallError | None = None
    ended_at: float = 0.0


class BulkCancels:
    """The bulk cancels of this gateway."""

    def __init__(
        self,
        cancels: Cancels,
        results: Results,
        directory: Directory,
        start: Callable[[Coroutine[Any, Any, None], str], object],
        clock: Clock,
    ) -> None:
        self._cancels = cancels
        self._results = results
        self._directory = directory
        self._start = start
        self._clock = clock
        self._jobs: dict[tuple[str, str], Job] = {}

    async def begin(self, wanted: CancelMany, workspace: str) -> Job:
        """The cancel of that request; begun now unless it runs. Raises `InvalidError`, `NotFoundError`."""
        if bool(wanted.call) == bool(wanted.app):
            raise InvalidError("give either a call or an app to cancel")
        if not 0 < len(wanted.request) <= MAX_NAME_CHARS:
            raise InvalidError(f"`request` must be a name of 1 to {MAX_NAME_CHARS} characters, made for this cancel")
        self._forget_old()
        known = self._jobs.get((workspace, wanted.request))
        if known is not None:
            return known
        work = await (self._of_call(wanted, workspace) if wanted.call else self._of_app(wanted, workspace))
        known = self._jobs.get((workspace, wanted.request))
        if known is not None:  # the same request, repeated while we looked
            return known
        job = self._jobs[workspace, wanted.request] = Job(Tally(wanted.terminate_containers))
        self._start(self._run(job, work), "gateway bulk cancel")
        return job

    async def progress(self, job: Job) -> AsyncGenerator[bytes, None]:
        """Lines of JSON with the counts so far; the last one says `done`, or what went wrong."""
        while not job.done.is_set():
            try:
                async with asyncio.timeout(PROGRESS_S):
                    await job.done.wait()
            except TimeoutError:
                yield self._line(job)
        yield self._line(job)

    def _line(self, job: Job) -> bytes:
        told: dict[str, Any] = {
            "job": job.name,
            "cancelled": job.tally.cancelled,
            "ended": job.tally.ended,
            "done": job.done.is_set(),
        }
        if job.error is not None:
            told["error"] = errors.to_wire(public(job.error))
        return json.dumps(told, default=str).encode() + b"\n"

    async def _run(self, job: Job, work: Callable[[Tally], Awaitable[None]]) -> None:
        try:
            await work(job.tally)
        except* SquallError as group:
            job.error = _first(group)
        finally:
            job.ended_at = self._clock.monotonic()
            job.done.set()
        log.info("bulk_cancelled", job=job.name, cancelled=job.tally.cancelled, ended=job.tally.ended)

    async def _of_call(self, wanted: CancelMany, workspace: str) -> Callable[[Tally], Awaitable[None]]:
        call = self._results.check(wanted.call)
        first = await self._results.first_record(call, workspace)
        if first is not None:
            return lambda tally: self._cancels.inputs(first, tally)
        ended = await self._results.count(call, workspace)
        if not ended:
            raise self._results.missing(call, 0)

        async def nothing_left(tally: Tally) -> None:
            tally.count(0, ended)

        return nothing_left

    async def _of_app(self, wanted: CancelMany, workspace: str) -> Callable[[Tally], Awaitable[None]]:
        app = (await self._directory.find_app(wanted.app, workspace, wanted.environment)).record
        pools = await self._directory.pools_of_now(app.app_id)
        if wanted.function:
            names = {p.pool: await self._directory.function_name(p.function_id, workspace) for p in pools}
            pools = [pool for pool in pools if names[pool.pool] == wanted.function]
            if not pools and wanted.function not in app.functions:
                raise InvalidError(f"app {app.name!r} has no function {wanted.function!r}")
        return lambda tally: self._cancels.pools([pool.pool for pool in pools], tally)

    def _forget_old(self) -> None:
        now = self._clock.monotonic()
        self._jobs = {
            key: job for key, job in self._jobs.items() if not job.done.is_set() or now - job.ended_at < KEPT_S
        }


def _first(group: BaseExceptionGroup[SquallError]) -> SquallError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, SquallError)
    return error
