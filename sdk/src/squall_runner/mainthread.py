"""The main thread of a container: where single-slot synchronous inputs, hooks and the event loop run.

Two forms with the same methods: `DirectMain` for several inputs at once without async code (importing
asyncio costs 45 ms; for one input at a time see `solo`), and `LoopMain`, which owns the one event loop and
leaves it for the time of a synchronous input, so that `asyncio.run` works in there.
"""

from __future__ import annotations

import collections
import queue
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from squall_runner.execute import Execution
from squall_runner.interrupt import Key

if TYPE_CHECKING:
    from squall_runner.batch import Batch

Job = Callable[[], None]
Work = Union[Execution, "Batch"]


class DirectMain:
    """Jobs one after the other, from a reader's thread."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Optional[Job]] = queue.SimpleQueue()

    def call(self, job: Job) -> None:
        """Run the job in the main thread; from any thread. It must not raise."""
        self._jobs.put(job)

    def run_hook(self, hook: Callable[[], Any]) -> None:
        """Run a hook to its end. Main thread only."""
        hook()

    def serve(self) -> None:
        """Run jobs until `finish`."""
        while True:
            try:
                job = self._jobs.get()
            except KeyboardInterrupt:
                continue  # a late signal that user code sent to itself
            if job is None:
                return
            job()

    def finish(self) -> None:
        """Let `serve` return after the jobs it has; from any thread."""
        self._jobs.put(None)


class LoopMain:
    """The event loop, and jobs between its runs."""

    def __init__(self) -> None:
        import asyncio

        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._jobs: collections.deque[Job] = collections.deque()
        self._tasks: dict[Key, Any] = {}
        self._finishing = False

    def call(self, job: Job) -> None:
        """As in `DirectMain`; tasks on the loop stand still meanwhile."""
        self._loop.call_soon_threadsafe(self._leave_for, job)

    def soon(self, job: Job) -> None:
        """Run something short on the loop; from any thread."""
        self._loop.call_soon_threadsafe(job)

    def spawn(self, work: Work, done: Job) -> None:
        """Run an async input as a task; `done` is called on the loop after its end. From any thread."""
        work.stop = lambda: self._stop(work)
        self._loop.call_soon_threadsafe(self._start, work, done)

    def run_hook(self, hook: Callable[[], Any]) -> None:
        """Run a hook, sync or async, to its end. Main thread only, while the loop does not run."""
        result = hook()
        if hasattr(result, "__await__"):
            self._loop.run_until_complete(_awaited(result))

    def serve(self) -> None:
        """Run the loop and jobs until `finish`, and until the last task has ended."""
        while not (self._finishing and not self._tasks and not self._jobs):
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                continue  # from a task that user code made; an input's own is reported as its failure
            while self._jobs:
                self._jobs.popleft()()

    def finish(self) -> None:
        """Let `serve` return after the tasks and jobs it has; from any thread."""
        self._loop.call_soon_threadsafe(self._finish)

    def _leave_for(self, job: Job) -> None:
        self._jobs.append(job)
        self._loop.stop()

    def _start(self, work: Work, done: Job) -> None:
        task = self._loop.create_task(work.run_async())
        self._tasks[work.key] = task
        task.add_done_callback(lambda _: self._ended(work.key, done))

    def _ended(self, key: Key, done: Job) -> None:
        self._tasks.pop(key, None)
        done()
        if self._finishing and not self._tasks:
            self._loop.stop()

    def _stop(self, work: Work) -> bool:
        self._loop.call_soon_threadsafe(self._cancel, work)
        return True

    def _cancel(self, work: Work) -> None:
        task = self._tasks.get(work.key)
        if task is not None and work.begun:  # before that, it sees `cancel_requested` itself
            task.cancel()

    def _finish(self) -> None:
        self._finishing = True
        if not self._tasks:
            self._loop.stop()


async def _awaited(awaitable: Any) -> None:
    await awaitable
