"""A few lines at the bottom of the terminal that change, below text that scrolls. Owns the cursor and nothing else.

Text goes to its own stream, byte for byte; only what has no line end yet is held back, and shown in the region, so that
progress bars drawn with carriage returns keep working while several programs write at once.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Hashable
from typing import IO, Callable

MAX_HELD_CHARACTERS = 64 * 1024
MAX_HELD_LINES = 8
_ESCAPES = re.compile(r"\033\[[0-9;?]*[A-Za-z]")
_CLEAR_BELOW = "\r\033[J"
_HIDE_CURSOR, _SHOW_CURSOR = "\033[?25l", "\033[?25h"


class Region:
    """The changing lines on one terminal. Thread-safe.

    `draw` is asked for them at each `refresh`; text that comes in between moves what was drawn last, so that a program
    that prints a lot is not slowed down.
    """

    def __init__(self, terminal: IO[str], draw: Callable[[], list[str]], width: Callable[[], int] = lambda: 80) -> None:
        self._terminal = terminal
        self._draw = draw
        self._width = width
        self._drawn: list[str] = []
        self._lines_shown = 0
        self._held: dict[Hashable, tuple[IO[str], str]] = {}
        self._lock = threading.RLock()
        self._open = False

    def open(self) -> None:
        """Begin to draw."""
        with self._lock:
            self._open = True
            self._terminal.write(_HIDE_CURSOR)
            self.refresh()

    def close(self) -> None:
        """Remove the region; what was held back is written as it stands."""
        with self._lock:
            if not self._open:
                return
            self._erase()
            for stream, text in self._held.values():
                stream.write(text)
                stream.flush()
            self._held.clear()
            self._open = False
            self._terminal.write(_SHOW_CURSOR)
            self._terminal.flush()

    def refresh(self) -> None:
        """Draw the region as it is now."""
        drawn = self._draw()
        with self._lock:
            if self._open:
                self._drawn = drawn
                self._erase()
                self._show()

    def write(self, stream: IO[str], text: str, source: Hashable = None) -> None:
        """Text above the region. `source` tells apart what several programs write to one stream."""
        with self._lock:
            if not self._open:
                stream.write(text)
                stream.flush()
                return
            key = (id(stream), source)
            whole, rest = _split(self._held.pop(key, (stream, ""))[1] + text)
            if rest:
                self._held[key] = (stream, rest)
            if whole:
                self._erase()
                stream.write(whole)
                stream.flush()
                self._show()

    def _erase(self) -> None:
        if self._lines_shown:
            self._terminal.write(f"\033[{self._lines_shown}A{_CLEAR_BELOW}")
            self._terminal.flush()
            self._lines_shown = 0

    def _show(self) -> None:
        width = self._width()
        held = [_ESCAPES.sub("", visible(text))[: width - 1] for _, text in self._held.values() if visible(text)]
        lines = [*held[-MAX_HELD_LINES:], *self._drawn]
        self._terminal.write("".join(f"{line}\033[0m\n" for line in lines))
        self._terminal.flush()
        self._lines_shown = len(lines)


class Redirected(io.TextIOBase):
    """Stands in for sys.stdout or sys.stderr while a region is open: the program's own prints go above it."""

    def __init__(self, region: Region, stream: IO[str]) -> None:
        self._region = region
        self._stream = stream

    def write(self, text: str) -> int:
        """Like any text stream."""
        self._region.write(self._stream, text)
        return len(text)

    def writable(self) -> bool:
        """Yes."""
        return True

    def isatty(self) -> bool:
        """As the stream itself."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """As the stream itself."""
        return self._stream.fileno()

    def flush(self) -> None:
        """Nothing waits here that could be written."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As the stream itself."""
        return str(getattr(self._stream, "encoding", "utf-8"))

    @property
    def buffer(self) -> IO[bytes]:
        """The bytes below, for programs that write bytes; these do not move the region."""
        return self._stream.buffer  # type: ignore[attr-defined, no-any-return]


def visible(text: str) -> str:
    """What a terminal shows of an unfinished line: the text after the last carriage return that has any."""
    return next((part for part in reversed(text.split("\r")) if part), "")


def _split(text: str) -> tuple[str, str]:
    """Whole lines, and the unfinished rest."""
    end = text.rfind("\n") + 1
    whole, rest = text[:end], text[end:]
    if "\r" in rest:
        kept = visible(rest)
        rest = ("\r" if rest.startswith("\r") or rest != kept else "") + kept + ("\r" if rest.endswith("\r") else "")
    if len(rest) > MAX_HELD_CHARACTERS:
        whole, rest = whole + rest + "\n", ""
    return whole, rest
