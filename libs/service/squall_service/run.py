"""How a service lives: starts, is ready, drains within a grace period, ends with an exit code.

The same `Service` runs as a process of its own (`run`) or as tasks of a shared process (`async with start(...)`).
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from squall.errors import SquallError
from squall_service import failpoints
from squall_service.clock import Clock, SystemClock
from squall_service.health import Health
from squall_service.logs import configure_logging, current_service, log
from squall_service.memory import keep_freed_memory
from squall_service.open_files import allow_many_open_files
from squall_service.telemetry import Telemetry, TelemetrySettings, open_telemetry

S = TypeVar("S")

GRACE_S = 30.0
EXIT_OK, EXIT_FAILED, EXIT_REFUSED, EXIT_NOT_DRAINED = 0, 1, 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Service(Generic[S]):
    """What makes a service: its name, its main function and its settings."""

    name: str
    main: Callable[[ServiceContext[S]], Awaitable[None]]
    """Builds everything, calls `context.ready()`, waits for `context.stopping`, drains, returns. When it returns,
    tasks that it started with `context.start` are cancelled."""
    settings: S
    grace_s: float = GRACE_S
    """How long `main` may take after it was asked to stop; then it is cancelled."""


class ServiceContext(Generic[S]):
    """What a running service gets from its process."""

    def __init__(self, service: Service[S], clock: Clock, telemetry: Telemetry) -> None:
        self.name = service.name
        self.settings = service.settings
        self.clock = clock
        self.telemetry = telemetry
        self.health = Health()
        self.stopping = asyncio.Event()
        """Set when the service should stop taking work and drain."""
        self.is_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: asyncio.TaskGroup | None = None
        self._started: set[asyncio.Task[None]] = set()

    def ready(self) -> None:
        """Call once everything is subscribed: whoever started the service goes on from here."""
        if not self.is_ready.done():
            log.info("service_ready")
            self.is_ready.set_result(None)

    def stop(self) -> None:
        self.stopping.set()

    def start(self, work: Coroutine[Any, Any, None], name: str | None = None) -> asyncio.Task[None]:
        """A task of the service. When it fails the service fails; when `main` returns it is cancelled."""
        assert self._tasks is not None, "start() is for main and what it calls"
        task = self._tasks.create_task(work, name=name)
        self._started.add(task)
        task.add_done_callback(self._started.discard)
        return task

    async def run_main(self, main: Callable[[ServiceContext[S]], Awaitable[None]]) -> None:
        """`main` with its tasks, to its end."""
        current_service.set(self.name)
        async with asyncio.TaskGroup() as self._tasks:
            await main(self)
            for task in list(self._started):
                task.cancel()


class Running:
    """A service that was started in this process."""

    def __init__(self, name: str, context: ServiceContext[Any], task: asyncio.Task[None], grace_s: float) -> None:
        self.name = name
        self._context = context
        self._task = task
        self._grace_s = grace_s
        self.drained = True
        """False when it had to be cancelled after its grace period."""

    @property
    def health(self) -> Health:
        return self._context.health

    @property
    def telemetry(self) -> Telemetry:
        return self._context.telemetry

    async def ended(self, stop: asyncio.Future[None] | None = None) -> None:
        """Wait until it ends by itself, or until `stop` is done."""
        await asyncio.wait([self._task] if stop is None else [self._task, stop], return_when=asyncio.FIRST_COMPLETED)

    def cancel(self) -> None:
        """End it without draining."""
        self.drained = False
        self._task.cancel()

    async def stop(self) -> None:
        """Ask it to drain, and cancel it after its grace period; at once if it was never ready. May be called again."""
        self._context.stop()
        if not self._context.is_ready.done():
            self._task.cancel()
            await asyncio.wait([self._task])
        if not self._task.done():
            await asyncio.wait([self._task], timeout=self._grace_s)
        if not self._task.done():
            log.error("drain_timed_out", service=self.name, grace_s=self._grace_s)
            self.cancel()
            await asyncio.wait([self._task])


@asynccontextmanager
async def start(
    service: Service[S],
    *,
    clock: Clock | None = None,
    telemetry: Telemetry | None = None,
    interrupt: asyncio.Future[None] | None = None,
) -> AsyncIterator[Running]:
    """Run the service as tasks of this event loop: ready when the block begins, drained when it has ended.

    What ends the service early is raised here, and cancels the block. `interrupt` ends the wait for its readiness.
    """
    own = telemetry is None
    telemetry = telemetry or open_telemetry(service.name)
    context = ServiceContext(service, clock or SystemClock(), telemetry)
    try:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(context.run_main(service.main), name=f"service {service.name}")
            running = Running(service.name, context, task, service.grace_s)
            try:
                # A service that fails before it is ready cancels this wait by its task group.
                waits = [context.is_ready, task] if interrupt is None else [context.is_ready, task, interrupt]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                yield running
            finally:
                await running.stop()
    except BaseExceptionGroup as group:
        raise _only_cause(group) from None
    finally:
        if own:
            await telemetry.close()


def _only_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Task groups nest; what one thing went wrong inside is what people want to see."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


# ---------------------------------------------------------------------- as a process


def run(
    name: str,
    main: Callable[[ServiceContext[S]], Awaitable[None]],
    load: Callable[[], S],
    *,
    grace_s: float = GRACE_S,
) -> int:
    """The whole life of a service process; returns its exit code.

    `raise SystemExit(run("scheduler", serve, SchedulerSettings.load))`: settings are loaded here, so that a wrong one
    is reported like every other refusal.
    """
    keep_freed_memory()
    allow_many_open_files()
    configure_logging()
    current_service.set(name)
    try:
        settings = TelemetrySettings.load()
        configure_logging(settings.log_format, settings.log_level)
        service = Service(name=name, main=main, settings=load(), grace_s=grace_s)
        testing = failpoints.FailPointSettings.load()
        failpoints.parse(testing.failpoints)
    except SquallError as error:
        _refused(error)
        return EXIT_REFUSED
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_process(service, settings, testing))


def _refused(error: SquallError) -> None:
    log.error("service_refused", code=error.code, reason=error.message, fix=error.hint)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop  # not on Windows

    return uvloop.new_event_loop


async def _process(service: Service[Any], settings: TelemetrySettings, testing: failpoints.FailPointSettings) -> int:
    stop = _StopSignals()
    failpoints.enable(testing)
    telemetry = open_telemetry(service.name, settings)
    try:
        async with start(service, telemetry=telemetry, interrupt=stop.first) as running:
            stop.running = running
            await running.ended(stop.first)
        return EXIT_OK if running.drained else EXIT_NOT_DRAINED
    except SquallError as error:
        _refused(error)
        return EXIT_REFUSED
    except Exception as error:
        log.error("service_failed", error=error)
        return EXIT_FAILED
    finally:
        await telemetry.close()


class _StopSignals:
    """SIGTERM and SIGINT: the first one starts the drain, the second one ends it. Listens from the very start."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[None] = loop.create_future()
        self.running: Running | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if not self.first.done():
            log.info("service_stopping", signal=name)
            self.first.set_result(None)
        elif self.running is not None:
            log.warning("drain_interrupted", signal=name)
            self.running.cancel()
