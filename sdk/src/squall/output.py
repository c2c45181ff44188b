"""What the SDK tells the person in front of the screen: an interface, silent by default.

Owns which output is active. The CLI and `enable_output()` put a real one in its place.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Optional, TextIO

if TYPE_CHECKING:
    from squall.http_api.apps import AppStatus
    from squall.http_api.traces import LogEntry


class Output:
    """Every method is called as things happen, from any thread; this one says nothing."""

    live = False
    """Whether log lines and container status are wanted; a silent program does not ask the server for them."""

    def image_building(self, image_id: str, description: str) -> None:
        """An image is asked for. Nothing was built yet if `image_log` follows, else it existed."""

    def image_log(self, image_id: str, entry: LogEntry) -> None:
        """A line of a build."""

    def image_ready(self, image_id: str) -> None:
        """The image exists."""

    def app_created(self, app_id: str, name: str) -> None:
        """The server accepted the app."""

    def function_created(self, name: str) -> None:
        """One function (or class) of it."""

    def web_function(self, name: str, url: str, protected: bool) -> None:
        """Where a web function of it answers; `protected`: to whoever has a proxy token."""

    def app_deployed(self, app_id: str, name: str, version: int, unchanged: bool) -> None:
        """A deploy ended; `unchanged`: it was skipped."""

    def status(self, status: AppStatus) -> None:
        """Containers, backlog and why inputs wait; about once a second."""

    def waiting(self, call: str, reason: str) -> None:
        """A call waits; empty reason: not any more."""

    def log(self, entry: LogEntry) -> None:
        """Text that user code printed; may end without a newline, carriage returns are kept."""

    def map_progress(self, call: str, function: str, done: int, submitted: int, finished: bool) -> None:
        """A map moved on. `finished`: no more inputs and no more results will come."""

    def app_done(self, app_id: str, aborted: bool) -> None:
        """The app was stopped; `aborted` when an exception ended it."""

    def app_detached(self, app_id: str) -> None:
        """The program is done with an app that goes on."""


class PlainOutput(Output):
    """Log lines to this process's own streams, steps as lines on stderr."""

    live = True

    def __init__(self, steps: bool = True) -> None:
        self._steps = steps
        self._reason = ""

    def _step(self, text: str) -> None:
        if self._steps:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def image_log(self, image_id: str, entry: LogEntry) -> None:
        self._step(entry.text.rstrip("\n"))

    def app_created(self, app_id: str, name: str) -> None:
        self._step(f"✓ Initialized app {name} ({app_id}).")

    def function_created(self, name: str) -> None:
        self._step(f"✓ Created function {name}.")

    def web_function(self, name: str, url: str, protected: bool) -> None:
        self._step(f"✓ Web function {name} => {url}{' (wants a proxy token)' if protected else ''}")

    def app_deployed(self, app_id: str, name: str, version: int, unchanged: bool) -> None:
        self._step(
            f"✓ Deployment of {name} skipped: no changes." if unchanged else f"✓ Deployed {name} version {version}."
        )

    def status(self, status: AppStatus) -> None:
        reason = next((pool.waiting for pool in status.pools if pool.waiting), "")
        if reason and reason != self._reason:
            self._step(f"… waiting: {reason}")
        self._reason = reason

    def log(self, entry: LogEntry) -> None:
        _write_beside(sys.stderr if entry.stream == "stderr" else sys.stdout, entry.text)

    def app_done(self, app_id: str, aborted: bool) -> None:
        self._step("App aborted." if aborted else "✓ App completed.")

    def app_detached(self, app_id: str) -> None:
        self._step(f"✓ {goes_on(app_id)}")


def goes_on(app_id: str) -> str:
    """What is said at the end of a detached run."""
    return f"The app goes on: `squall app logs -f {app_id}` shows its logs, `squall app stop {app_id}` stops it."


def _write_beside(stream: TextIO, text: str) -> None:
    """Write past what the program prints meanwhile. `print` hands over a line and its end in two pieces, between which
    text of another thread would come: so the stream keeps a line until it has its end, and `text` goes around it."""
    descriptor = _descriptor(stream)
    if descriptor is None or not isinstance(stream, io.TextIOWrapper):
        stream.write(text)
        stream.flush()
        return
    if not stream.line_buffering:
        stream.reconfigure(line_buffering=True)
    left = memoryview(text.encode(stream.encoding, stream.errors or "strict"))
    while left:
        left = left[os.write(descriptor, left) :]


def _descriptor(stream: TextIO) -> Optional[int]:
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):  # replaced by something in memory, or closed
        return None


_active: list[Output] = [Output()]


def current() -> Output:
    """The active output."""
    return _active[-1]


@contextlib.contextmanager
def use(output: Output) -> Iterator[Output]:
    """Make `output` the active one within the block."""
    _active.append(output)
    try:
        yield output
    finally:
        _active.remove(output)


@contextlib.contextmanager
def enable_output(show_progress: Optional[bool] = None) -> Iterator[None]:
    """Within the block, apps print their logs and steps.

    `show_progress=False` leaves the steps out; the logs of containers are printed in any case."""
    with use(_best(show_progress)):
        yield


def _best(show_progress: Optional[bool]) -> Output:
    if sys.stderr.isatty() and show_progress is not False:
        try:
            from squall.cli.live import LiveOutput  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            return PlainOutput()
        live: Output = LiveOutput()
        return live
    return PlainOutput(steps=show_progress is not False)
