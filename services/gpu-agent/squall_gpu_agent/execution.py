"""Execution: one input in one container, from its arguments to the end of its code, with its time limit and cancel.

Owns the timers that stop user code: first asked (`cancel`), then killed with its container after a grace period.
Decides nothing about what the end means.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from squall.errors import DataLossError, SquallError
from squall.http_api.protocol import parse_blob_ref
from squall.ids import is_sampled
from squall.spec import Kind
from squall_contracts.spans import ATTEMPT, parse_traceparent, span_id, traceparent
from squall_gpu_agent.backend import End, Failed, FailureKind, FullDisk, InputRequest, NotBegun, OnItem
from squall_gpu_agent.cancels import Cancels
from squall_gpu_agent.containers import PooledContainer
from squall_gpu_agent.held import ENCODINGS, Held
from squall_gpu_agent.items import ItemStreams
from squall_gpu_agent.policy.lifecycle import Event
from squall_service.blobs import Blobs
from squall_service.clock import Clock
from squall_service.failpoints import failpoint_written
from squall_service.telemetry import log

CANCEL_GRACE_S = 2.0
LONG_S = 1.0
"""What was known of an input before its arguments were fetched may be different after so long."""
GENERATOR = Kind.GENERATOR.value


class RunningInput:
    """An input that was given to a container, and the timers that will stop its code."""

    __slots__ = ("_began_at", "_clock", "_container", "_grace_s", "_kill", "_loop", "_over", "_timeout", "held")

    def __init__(self, held: Held, container: PooledContainer, clock: Clock, grace_s: float) -> None:
        self.held = held
        self._container = container
        self._clock = clock
        self._grace_s = grace_s
        self._loop = asyncio.get_running_loop()
        self._timeout: asyncio.TimerHandle | None = None
        self._kill: asyncio.TimerHandle | None = None
        self._began_at = 0.0
        self._over = False

    @property
    def begun(self) -> bool:
        """Its turn has come; until then it waits in the container's line."""
        return self._timeout is not None

    def begin(self) -> None:
        """Its code runs from now on, or when its batch begins."""
        held, container, spec = self.held, self._container, self._container.function.spec
        held.advance(Event.STARTED)
        held.cold = not container.served and container.ready_ns > held.request.accepted_at * 1e9
        container.served += 1
        self._began_at = self._clock.monotonic()
        held.started_at = self._clock.now()
        held.started_ns = int(held.started_at * 1e9)
        timeout_s = spec.timeout_s
        if spec.batching is not None:
            # Until its batch begins: it waits for others, and for a batch that runs and has its own limit.
            timeout_s += spec.timeout_s + spec.batching.wait_ms / 1000
        self._timeout = self._loop.call_later(timeout_s, self._over_time)
        if held.cancelled:
            self._loop.call_soon(self.cancel)

    def batch_begun(self) -> None:
        """Its batch begins: the time limit counts from here."""
        if self._timeout is not None and not self._over:
            self._timeout.cancel()
            self._timeout = self._loop.call_later(self._container.function.spec.timeout_s, self._over_time)

    def _over_time(self) -> None:
        self.held.timed_out = True
        self.stop("the function's timeout")

    def cancel(self) -> None:
        """The caller no longer wants it."""
        self.held.cancelled = True
        self.stop("a cancel")

    def stop(self, why: str) -> None:
        """Ask the code to stop; what has not stopped after the grace period is killed with its container. One that
        waits in line is only taken back."""
        if self._over or self._kill is not None:
            return
        self._container.container.cancel(*self.held.key)
        if self.begun:
            self.held.advance(Event.STOP_ASKED)
            self._kill = self._loop.call_later(self._grace_s, self._container.container.kill, f"killed after {why}")

    def over(self) -> None:
        """The code has ended, or will not run."""
        self._over = True
        if self._kill is not None:
            self._kill.cancel()
        if self._timeout is not None:
            self._timeout.cancel()
            held = self.held
            held.run_s = self._clock.monotonic() - self._began_at
            held.ended_ns = int(self._clock.now() * 1e9)
            held.advance(Event.ENDED)


class Execution:
    """Runs inputs."""

    def __init__(
        self, clock: Clock, blobs: Blobs, items: ItemStreams, cancels: Cancels, grace_s: float = CANCEL_GRACE_S
    ) -> None:
        self._clock = clock
        self._cancels = cancels
        self._blobs = blobs
        self._items = items
        self._grace_s = grace_s
        self._running: dict[tuple[str, str], dict[int, RunningInput]] = {}
        """By pool and call, and then by index."""

    def cancel(self, pool: str, call: str, index: int | None) -> list[Held]:
        """Stop what runs of a call, and take back what waits in line; which inputs ran."""
        found = [run for run in self._running.get((pool, call), {}).values() if index in (None, run.held.request.index)]
        for run in found:
            run.cancel()
        return [run.held for run in found if run.begun]

    def told_started(self) -> list[Held]:
        """Inputs that run and have not been announced yet; announced from now on."""
        running = [run for by_index in self._running.values() for run in by_index.values()]
        fresh = [run.held for run in running if run.begun and not run.held.told_started]
        for held in fresh:
            held.told_started = True
        return fresh

    async def run(
        self, held: Held, container: PooledContainer, is_open: Callable[[Held], Awaitable[bool]]
    ) -> End | NotBegun | None:
        """Run it to its end. Never raises for what user code or its data do. Of one that is `NotBegun` nothing has run,
        and it is held as it was before. None: its arguments were long in coming, and then it was not `is_open` any
        more."""
        request = held.request
        path: Path | None = None
        incoming: Path | None = None
        try:
            if request.blob:
                path = container.container.scratch / f"in-{request.call}-{request.index}-{held.attempt}"
                incoming = container.container.incoming / path.name
                asked_at = self._clock.monotonic()
                try:
                    await self._blobs.of(request.workspace).fetch(request.blob, incoming)
                    incoming.rename(path)
                except (SquallError, OSError) as error:
                    held.started_at = self._clock.now()
                    held.started_ns = held.ended_ns = int(held.started_at * 1e9)
                    held.advance(Event.SETTLED_UNSTARTED)
                    return no_room(error, container, request.blob) or _arguments_failed(error)
                if self._clock.monotonic() - asked_at > LONG_S and not await is_open(held):
                    return None
            if request.kind != GENERATOR:
                return await self._run(held, container, path, self._items.unread(held, container))
            async with self._items.open(held, container) as on_item:
                return await self._run(held, container, path, on_item)
        finally:
            for file in (path, incoming):
                if file is not None:
                    file.unlink(missing_ok=True)

    async def _run(
        self, held: Held, container: PooledContainer, path: Path | None, on_item: OnItem | None
    ) -> End | NotBegun:
        request = held.request
        trace_id, _ = parse_traceparent(request.traceparent)
        own_span = span_id(request.call, request.index, held.attempt, ATTEMPT) if trace_id else ""
        running = RunningInput(held, container, self._clock, self._grace_s)
        input_request = InputRequest(
            call=request.call,
            index=request.index,
            attempt=held.number,
            method=request.method,
            encoding=ENCODINGS[request.encoding],
            payload=request.payload if path is None else None,
            path=path,
            traceparent=traceparent(trace_id, own_span, is_sampled(request.traceparent)) if trace_id else None,
            on_begun=running.batch_begun if container.function.spec.batching else None,
        )
        self._running.setdefault((request.pool, request.call), {})[request.index] = running
        if self._cancels.recent(*held.place):  # it came while the history was read
            held.cancelled = True
        failpoint_written("agent.handed_over")
        try:
            return await container.container.run(input_request, on_item, running.begin)
        finally:
            running.over()
            self._forget(held)

    def _forget(self, held: Held) -> None:
        pool, call, index = held.place
        by_index = self._running[pool, call]
        by_index.pop(index, None)
        if not by_index:
            del self._running[pool, call]


def no_room(error: SquallError | OSError, container: PooledContainer, ref: str) -> Failed | None:
    """If it is the container's own disk that has no room for the arguments. What inputs before it have left there is
    not this one's fault: another container has room."""
    limit_mib = container.container.disk_mib
    if not limit_mib or not isinstance(error, OSError) or error.errno != errno.ENOSPC:
        return None
    try:
        disk = os.statvfs(container.container.incoming)
    except OSError:
        return None  # it has ended
    _, size = parse_blob_ref(ref)
    free = disk.f_bavail * disk.f_frsize
    if size <= free:
        return None
    never = size > limit_mib << 20 or container.served <= 1
    failed = _arguments_failed(error)
    return replace(
        failed,
        kind=FailureKind.DISK_FULL if never else FailureKind.INFRA,
        message=f"{failed.message}: {size >> 20} MiB, and {free >> 20} of {limit_mib} MiB are free in its container",
        disk=FullDisk("/", (limit_mib << 20) - free, 0, still=True, limit_mib=limit_mib),
    )


def _arguments_failed(error: SquallError | OSError) -> Failed:
    gone = isinstance(error, DataLossError)
    log.warning("arguments_not_fetched", reason=str(error))
    return Failed(
        kind=FailureKind.DESERIALIZATION if gone else FailureKind.INFRA,
        type_name=type(error).__name__,
        module=type(error).__module__,
        message=f"the arguments could not be fetched: {error}",
        traceback="",
    )
