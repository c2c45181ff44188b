"""Runs synchronous inputs side by side, each in a daemon thread; threads are made when needed and kept."""

from __future__ import annotations

import queue
import threading
from typing import Callable

Job = Callable[[], None]


class Threads:
    """As many threads as inputs ever ran at the same time."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)

    def call(self, job: Job) -> None:
        """Run the job soon, in parallel to all others. It must not raise."""
        if not self._idle.acquire(blocking=False):
            threading.Thread(target=self._work, name="squall-input", daemon=True).start()
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            self._jobs.get()()
            self._idle.release()
