"""The main thread of a container that runs one synchronous input at a time: it reads the socket itself.

A reader thread that hands each input over costs two switches between threads: a third of the runner's CPU for a no-op.
Only while an input runs for longer than `WATCH_S` does a second thread read, so that a cancel or a stop arrives.
"""

from __future__ import annotations

import collections
import os
import threading
from typing import Any, Callable, Optional

from squall_runner.channel import Channel
from squall_runner.frames import Frame

Job = Callable[[], None]
OnFrame = Callable[[Frame], None]

WATCH_S = 0.03
"""A cancel waits so long at most; the second thread costs nothing for inputs that are shorter."""
PARK_ROUNDS = 30
"""Rounds without a long input after which the second thread sleeps until the next input."""


class SoloMain:
    """Jobs one after the other, made by the frames that it reads. Same face as `DirectMain`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._jobs: collections.deque[Job] = collections.deque()
        self._finishing = False
        self.enough = False
        """Nothing more begins until the agent has heard of it: what is lined up waits to be asked back."""
        self._turn = threading.Lock()
        """Held by whoever reads and handles frames."""
        self._busy = False
        self._begun = 0
        self._parked = True
        self._unpark = threading.Event()
        self._pause = threading.Event()  # never set: user code may have replaced `time.sleep`

    def call(self, job: Job) -> None:
        """Run the job in the main thread. Called while a frame is handled; the job must not raise."""
        self._jobs.append(job)

    def take_back(self, job: Job) -> bool:
        """Not run this job after all. Called while a frame is handled; False when it has begun."""
        try:
            self._jobs.remove(job)
        except ValueError:
            return False
        return True

    def run_hook(self, hook: Callable[[], Any]) -> None:
        """Run a hook to its end. Main thread only."""
        hook()

    def finish(self) -> None:
        """Let `serve` return after the jobs it has. Called while a frame is handled."""
        self._finishing = True

    def serve(self, on_frame: OnFrame) -> None:
        """Read frames and run jobs until `finish`."""
        threading.Thread(target=self._watch, args=(on_frame,), name="squall-reader", daemon=True).start()
        with self._turn:
            self._handle(on_frame, self._channel.take_ready())
        while True:
            try:
                job = self._next(on_frame)
            except KeyboardInterrupt:
                continue  # a late signal that user code sent to itself
            self._begin()  # also before the end: the exit hooks may take long, and the agent may die meanwhile
            if job is None:
                return
            job()
            if self._channel.abandoned:
                os._exit(0)  # a child that user code forked, and that has come back from the user's code
            self._busy = False

    def _begin(self) -> None:
        self._begun += 1
        self._busy = True
        if self._parked:
            self._parked = False
            self._unpark.set()

    def _next(self, on_frame: OnFrame) -> Optional[Job]:
        with self._turn:
            while not self._jobs or (self.enough and not self._finishing):
                if self._finishing:
                    return None
                self._handle(on_frame, self._channel.read())
            return self._jobs.popleft()

    def _handle(self, on_frame: OnFrame, found: list[Frame]) -> None:
        for frame in found:
            on_frame(frame)

    # --- the second thread ---

    def _watch(self, on_frame: OnFrame) -> None:
        seen, quiet = 0, 0
        while True:
            self._unpark.wait()
            self._pause.wait(WATCH_S)
            if self._runs_still(seen):
                quiet = 0
                while self._runs_still(seen):
                    self._read_beside(on_frame)
            seen, quiet = self._begun, quiet + 1
            if quiet >= PARK_ROUNDS:
                quiet = 0
                self._park()

    def _runs_still(self, number: int) -> bool:
        return self._busy and self._begun == number

    def _read_beside(self, on_frame: OnFrame) -> None:
        """Frames for an input that runs. The main thread never waits for this: it is held only while there are some."""
        if self._channel.readable(WATCH_S) and self._turn.acquire(blocking=False):
            try:
                if self._busy:
                    self._handle(on_frame, self._channel.read(wait=False))
            finally:
                self._turn.release()

    def _park(self) -> None:
        self._unpark.clear()
        self._parked = True
        if self._busy:  # it began after the last look, and may have seen us awake
            self._parked = False
            self._unpark.set()
