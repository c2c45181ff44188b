"""Chooses how things are shown: live on a terminal, as plain lines otherwise, or hardly at all with --quiet."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Optional, Protocol

from squall import output
from squall.http_api import AppStatus, LogEntry

PROGRESS_S = 5.0
"""How often a line about a map is printed where nothing can be drawn."""


class Screen(Protocol):
    """An output that also shows what the command itself is doing."""

    unchanged: Optional[bool]
    """Whether the deployment that was told last had nothing to change."""

    def doing(self, text: str) -> None:
        """What goes on now; empty: nothing to tell."""


class PlainScreen(output.PlainOutput):
    """Lines only: steps on standard error, the text of user code where it belongs."""

    def __init__(self, *, quiet: bool, timestamps: bool) -> None:
        super().__init__(steps=not quiet)
        self.unchanged: Optional[bool] = None
        self._timestamps = timestamps
        self._line_open: dict[str, bool] = {}
        self._told: dict[str, float] = {}
        self._waits: dict[str, str] = {}

    def doing(self, text: str) -> None:
        """Not worth a line."""

    def app_deployed(self, app_id: str, name: str, version: int, unchanged: bool) -> None:
        self.unchanged = unchanged

    def status(self, status: AppStatus) -> None:
        for pool in status.pools:
            if pool.waiting and self._waits.get(pool.pool) != pool.waiting:
                self._step(f"… {pool.function} waits: {pool.waiting}")
            self._waits[pool.pool] = pool.waiting

    def waiting(self, call: str, reason: str) -> None:
        if reason and reason not in self._waits.values():
            self._step(f"… waiting: {reason}")
        self._waits[call] = reason

    def log(self, entry: LogEntry) -> None:
        if self._timestamps and not self._line_open.get(entry.container + entry.stream):
            stamp = time.strftime("%H:%M:%S", time.localtime(entry.at))
            entry = LogEntry(at=entry.at, stream=entry.stream, text=f"{stamp} {entry.text}")
        self._line_open[entry.container + entry.stream] = not entry.text.endswith("\n")
        super().log(entry)

    def map_progress(self, call: str, function: str, done: int, submitted: int, finished: bool) -> None:
        now = time.monotonic()
        if finished or now - self._told.setdefault(call, now) >= PROGRESS_S:
            self._told[call] = now
            self._step(f"{'✓' if finished else '…'} {function}: {done} of {submitted} inputs")


@contextlib.contextmanager
def shown(*, quiet: bool, timestamps: bool = False) -> Iterator[Screen]:
    """Everything that the SDK tells in the block is shown."""
    if quiet or not sys.stderr.isatty():
        with output.use(PlainScreen(quiet=quiet, timestamps=timestamps)) as plain:
            assert isinstance(plain, PlainScreen)
            yield plain
        return
    from squall.cli.live import LiveOutput

    live = LiveOutput(timestamps=timestamps)
    live.start()
    try:
        with output.use(live):
            yield live
    finally:
        live.stop()
