"""Chooses how things are shown: live on a terminal, as plain lines otherwise, or hardly at all with --quiet."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Optional, Protocol

from squall import output
from squall.http_api.apps import AppStatus
from squall.http_api.traces import LogEntry

WAIT_TOLD_S = 2.0
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
        self._built: set[str] = set()
        self._timestamps = timestamps
        self._line_open: dict[str, bool] = {}
        self._told: dict[str, float] = {}
        self._waits: dict[str, tuple[str, float]] = {}
        self._reasons_told: set[str] = set()

    def doing(self, text: str) -> None:
        """Not worth a line."""

    def image_log(self, image_id: str, entry: LogEntry) -> None:
        if entry.stream != "system":  # what squall itself says there is told by the steps
            self._built.add(image_id)
            super().image_log(image_id, entry)

    def image_ready(self, image_id: str) -> None:
        if image_id in self._built:
            self._step(f"✓ Built image {image_id}.")

    def app_deployed(self, app_id: str, name: str, version: int, unchanged: bool) -> None:
        self.unchanged = unchanged

    def status(self, status: AppStatus) -> None:
        for pool in status.pools:
            self._wait(pool.pool, pool.function, pool.waiting)

    def waiting(self, call: str, reason: str) -> None:
        self._wait(call, call, reason)

    def _wait(self, key: str, what: str, reason: str) -> None:
        """A reason is worth a line when it has lasted: containers that are starting are not news."""
        now = time.monotonic()
        if not reason:
            self._waits.pop(key, None)
            return
        told, since = self._waits.setdefault(key, (reason, now))
        if told != reason:
            self._waits[key] = (reason, since)
        if now - since >= WAIT_TOLD_S and reason not in self._reasons_told:
            self._reasons_told.add(reason)
            self._step(f"… {what} waits: {reason}")

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
            mark = "…" if not finished else "✓" if done == submitted else "✗"
            self._step(f"{mark} {function}: {done} of {submitted} inputs")


@contextlib.contextmanager
def shown(*, quiet: bool, timestamps: bool = False, plain: bool = False) -> Iterator[Screen]:
    """Everything that the SDK tells in the block is shown. `plain`: as lines, for nothing may be drawn over."""
    if quiet or plain or not sys.stderr.isatty():
        with output.use(PlainScreen(quiet=quiet, timestamps=timestamps)) as lines:
            assert isinstance(lines, PlainScreen)
            yield lines
        return
    from squall.cli.live import LiveOutput

    live = LiveOutput(timestamps=timestamps)
    live.start()
    try:
        with output.use(live):
            yield live
    finally:
        live.stop()
