"""What the SDK does, on a terminal: steps, build logs, map bars, containers, and why a call waits, while it happens.

Draws on standard error; the text of user code goes to the stream that it was written to. Only rich is needed here.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import IO, Optional

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from squall.cli.region import Redirected, Region
from squall.http_api.apps import AppStatus
from squall.http_api.traces import LogEntry
from squall.output import Output, goes_on

SYSTEM = "system"
"""The stream of what squall itself says in a log."""

FRAME_S = 0.1
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
BAR_WIDTH = 40


class _Map:
    """One map in progress."""

    def __init__(self, function: str) -> None:
        self.function = function
        self.done = 0
        self.submitted = 0
        self.began = time.monotonic()


class LiveOutput(Output):
    """The output of a terminal. Draws from `start` (or the first message) until `stop`."""

    live = True

    def __init__(
        self, out: Optional[IO[str]] = None, err: Optional[IO[str]] = None, *, timestamps: bool = False
    ) -> None:
        self._out, self._err = out or sys.stdout, err or sys.stderr
        self._timestamps = timestamps
        self._console = Console(file=self._err, force_terminal=True, highlight=False)
        self._region = Region(self._err, self._lines, lambda: self._console.width)
        self._lock = threading.RLock()
        self._doing = ""
        self._status: Optional[AppStatus] = None
        self._waiting: dict[str, str] = {}
        self._maps: dict[str, _Map] = {}
        self._built: set[str] = set()
        """Images whose build has said something; the others were there already."""
        self._ended = threading.Event()
        self._thread: Optional[threading.Thread] = None
        self._started_by_app = False
        self.unchanged: Optional[bool] = None

    # --- life ---

    def start(self) -> None:
        """Begin to draw; the process's own prints go above the drawing."""
        if self._thread is not None:
            return
        self._ended.clear()
        self._region.open()
        sys.stdout, sys.stderr = Redirected(self._region, self._out), Redirected(self._region, self._err)
        self._thread = threading.Thread(target=self._animate, name="squall-live", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Remove the drawing; the terminal is as before."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join(1.0)
        self._thread = None
        sys.stdout, sys.stderr = self._out, self._err
        self._region.close()

    def doing(self, text: str) -> None:
        """What goes on while nothing else says so; empty: nothing."""
        self._doing = text
        self._region.refresh()

    # --- what the SDK tells ---

    def _begin(self) -> None:
        """A program that only calls `enable_output()` draws while an app of it runs."""
        if self._thread is None:
            self._started_by_app = True
            self.start()

    def image_building(self, image_id: str, description: str) -> None:
        self._begin()
        self._doing = f"Image {image_id}: {description}" if description else f"Image {image_id}"

    def image_log(self, image_id: str, entry: LogEntry) -> None:
        if entry.stream != SYSTEM:
            self._built.add(image_id)
            self._above(f"[dim]{_escape(entry.text.rstrip())}[/dim]")

    def image_ready(self, image_id: str) -> None:
        self._doing = ""
        if image_id in self._built:
            self._step(f"Built image {image_id}.")

    def app_created(self, app_id: str, name: str) -> None:
        self._begin()
        self._doing = "Running app"
        self._step(f"Initialized app [bold]{_escape(name)}[/bold] ({app_id}).")

    def function_created(self, name: str) -> None:
        self._step(f"Created function [bold]{_escape(name)}[/bold].")

    def web_function(self, name: str, url: str, protected: bool) -> None:
        self._step(f"Web function [bold]{_escape(name)}[/bold] => {url}{' (wants a proxy token)' if protected else ''}")

    def app_deployed(self, app_id: str, name: str, version: int, unchanged: bool) -> None:
        self._doing, self.unchanged = "", unchanged
        if self._started_by_app:
            self._step(
                f"Deployment of {_escape(name)} skipped: no changes."
                if unchanged
                else f"Deployed {_escape(name)} version {version}."
            )
            self.stop()

    def status(self, status: AppStatus) -> None:
        self._status = status

    def waiting(self, call: str, reason: str) -> None:
        with self._lock:
            if reason:
                self._waiting[call] = reason
            else:
                self._waiting.pop(call, None)

    def log(self, entry: LogEntry) -> None:
        stream = self._err if entry.stream == "stderr" else self._out
        text = entry.text
        if self._timestamps:
            text = f"{time.strftime('%H:%M:%S', time.localtime(entry.at))} {text}"
        if entry.stream == "stderr" and text.strip() and stream.isatty():
            body = text.rstrip("\n")
            text = f"\033[31m{body}\033[0m{text[len(body) :]}" if "\r" not in text and "\033" not in text else text
        self._region.write(stream, text, source=(entry.container, entry.stream))

    def map_progress(self, call: str, function: str, done: int, submitted: int, finished: bool) -> None:
        with self._lock:
            first = call not in self._maps
            current = self._maps.setdefault(call, _Map(function))
            current.done, current.submitted = done, submitted
            if finished:
                self._maps.pop(call)
        if not finished:
            if first:
                self._region.refresh()
            return
        text = f"{_escape(function)}: {done} of {submitted} inputs in {time.monotonic() - current.began:.1f} s."
        if done == submitted:
            self._step(text)
        else:
            self._above(f"[red]✗[/red] {text}")

    def app_done(self, app_id: str, aborted: bool) -> None:
        self._doing, self._status = "", None
        if aborted:
            self._above("[yellow]App aborted.[/yellow]")
        else:
            self._step("App completed.")
        if self._started_by_app:
            self.stop()

    def app_detached(self, app_id: str) -> None:
        self._doing, self._status = "", None
        self._step(goes_on(app_id))
        if self._started_by_app:
            self.stop()

    # --- drawing ---

    def _step(self, markup: str) -> None:
        self._above(f"[green]✓[/green] {markup}")

    def _above(self, markup: str) -> None:
        with self._console.capture() as captured:
            self._console.print(Text.from_markup(markup), soft_wrap=True)
        self._region.write(self._err, captured.get())

    def _animate(self) -> None:
        while not self._ended.wait(FRAME_S):
            self._region.refresh()

    def _lines(self) -> list[str]:
        with self._lock:
            maps, activity = list(self._maps.values()), self._activity()
        width = self._console.width
        table = Table.grid(padding=(0, 1))
        for current in maps:
            bar = ProgressBar(total=max(1, current.submitted), completed=current.done, width=min(BAR_WIDTH, width // 3))
            seconds = time.monotonic() - current.began
            table.add_row(
                Text(current.function), bar, Text(f"{current.done}/{current.submitted}"), Text(f"{seconds:.0f} s")
            )
        with self._console.capture() as captured:
            if maps:
                self._console.print(table)
            if activity:
                frame = _FRAMES[int(time.monotonic() / FRAME_S) % len(_FRAMES)]
                line = Text.assemble((frame, "green"), " ", activity)
                self._console.print(line, no_wrap=True, overflow="ellipsis")
        return captured.get().splitlines()

    def _activity(self) -> str:
        parts = [self._doing] if self._doing else []
        reasons = list(self._waiting.values())
        if self._status is not None:
            ready = sum(pool.ready for pool in self._status.pools)
            starting = sum(pool.starting for pool in self._status.pools)
            if ready or starting:
                parts.append(
                    f"{ready} container{'s' if ready != 1 else ''}" + (f", {starting} starting" if starting else "")
                )
            reasons += [f"{pool.function}: {pool.waiting}" for pool in self._status.pools if pool.waiting]
        if reasons:
            parts.append(f"waiting for {reasons[0]}")
        return " · ".join(parts)


def _escape(text: str) -> str:
    return text.replace("[", "\\[")
