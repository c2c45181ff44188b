"""The event loop of a simulation: virtual time, and processes that can be paused and killed.

Every callback belongs to the process in whose context it was scheduled. A paused process keeps what is due for later; a
killed one keeps it for ever: nothing of it runs again, not even a `finally`, as with SIGKILL. Time jumps to the next
timer as soon as nothing is left to do, so a simulated minute costs what happens in it.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from itertools import count
from typing import Any

PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
MAX_TURNS = 20_000
"""Callbacks without time passing; more is an endless loop."""

STEP_S = 1e-6
"""What a callback takes. Time that stood still would be a world where a deadline a rounding error away never comes."""


class Process:
    """What can be paused or killed as a whole."""

    def __init__(self, loop: SimLoop, name: str) -> None:
        self.loop = loop
        self.name = name
        self.dead = False
        self.paused = False
        self.stopped = False
        """One of both."""
        self.kept: list[Handle] = []
        """Due while paused or dead. Dead ones are kept so that nothing of them is finalised during the run."""
        self.context = copy_context()
        self.context.run(PROCESS.set, self)

    def start(self, work: Coroutine[Any, Any, Any], name: str = "") -> asyncio.Task[Any]:
        """A task of this process."""
        return self.loop.create_task(work, name=name or self.name, context=self.context.copy())

    def call(self, callback: Callable[..., object], *args: object) -> None:
        """Run a callback in this process at the end of the turn."""
        self.loop.call_soon(callback, *args, context=self.context)

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> Handle:
        """Run a callback in this process at a time."""
        return self.loop.call_at(when, callback, *args, context=self.context)

    def kill(self) -> None:
        """Nothing of it runs again."""
        self.dead = self.stopped = True

    def pause(self) -> None:
        """Nothing of it runs until `resume`."""
        self.paused = self.stopped = True

    def resume(self) -> None:
        """What became due meanwhile runs now, in its order."""
        self.paused, self.stopped = False, self.dead
        kept, self.kept = self.kept, []
        self.loop.ready.extendleft(reversed(kept))


class Handle:
    """A callback that waits for its time or its turn. Same face as asyncio's, which costs twice as much."""

    __slots__ = ("_args", "_callback", "_cancelled", "_context", "_when")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], context: Context, when: float) -> None:
        self._callback = callback
        self._args = args
        self._context = context
        self._when = when
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def cancelled(self) -> bool:
        return self._cancelled

    def when(self) -> float:
        return self._when


class SimTask(asyncio.Task[Any]):
    """Hashed by its number: sets of tasks are in the same order in every run."""

    numbers = count()

    def __hash__(self) -> int:
        try:
            return self._number
        except AttributeError:
            self._number = next(SimTask.numbers)
            return self._number


class SimLoop(asyncio.AbstractEventLoop):
    """As much of an event loop as the services use. Deterministic: equal programs run equally."""

    def __init__(self, now: float) -> None:
        self.ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._now = now
        self._numbers = 0
        self.errors: list[str] = []
        """What asyncio has to say about tasks that failed with nobody looking."""
        self.steps = 0
        SimTask.numbers = count()

    # ------------------------------------------------------------------ what asyncio asks of a loop

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        handle = Handle(callback, args, context if context is not None else copy_context(), 0.0)
        self.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        handle = Handle(callback, args, context if context is not None else copy_context(), when)
        self._numbers += 1
        heapq.heappush(self._timers, (when, self._numbers, handle))
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        when = self._now + delay
        handle = Handle(callback, args, context if context is not None else copy_context(), when)
        self._numbers += 1
        heapq.heappush(self._timers, (when, self._numbers, handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        return SimTask(coro, loop=self, name=name or "", context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        """There are no threads: the work is done at once."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  # whoever waits gets it
            future.set_exception(error)
        return future

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.errors.append(f"{context.get('message')}: {error!r}")

    # ------------------------------------------------------------------ running

    def run_until(self, end: float) -> None:
        """Everything that happens up to that time."""
        asyncio._set_running_loop(self)
        stuck_at, stuck = -1.0, 0
        try:
            while True:
                self._run_ready()
                if not self._timers or self._timers[0][0] > end:
                    break
                self._now = max(self._now, self._timers[0][0])
                stuck = stuck + 1 if self._now == stuck_at else 0
                stuck_at = self._now
                if stuck > MAX_TURNS:
                    raise RuntimeError(f"{MAX_TURNS} timers at {self._now:.3f} without time passing")
                while self._timers and self._timers[0][0] <= self._now:
                    handle = heapq.heappop(self._timers)[2]
                    if not handle._cancelled:
                        self.ready.append(handle)
            self._now = max(self._now, end)
        finally:
            asyncio._set_running_loop(None)

    def _run_ready(self) -> None:
        """Each unless it was cancelled, or its process cannot run now."""
        ready, turns = self.ready, 0
        while ready:
            handle = ready.popleft()
            if handle._cancelled:
                continue
            context = handle._context
            process = context.get(PROCESS)
            if process is not None and process.stopped:
                process.kept.append(handle)
                continue
            context.run(handle._callback, *handle._args)
            self._now += STEP_S
            turns += 1
            if turns > MAX_TURNS:
                raise RuntimeError(f"{MAX_TURNS} callbacks at {self._now:.3f} without time passing")
        self.steps += turns
