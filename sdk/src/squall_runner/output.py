"""sys.stdout and sys.stderr of a container: text goes to the agent, tagged with the input that printed it.

Behaves like a line-buffered terminal: whole lines and flushed text are sent at once, the rest within
`PARTIAL_S` or when the input ends. Writes below Python (C code, subprocesses) go to descriptors 1 and 2,
which the agent reads.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import threading
from typing import Any, Callable, Optional

from squall_runner import context
from squall_runner.interrupt import Interrupter

PARTIAL_S = 0.1

Key = Optional[tuple[str, int]]
Send = Callable[[str, str, Key], None]


class Stream(io.TextIOBase):
    """One of the two streams."""

    def __init__(self, name: str, descriptor: int, send: Send, interrupter: Interrupter) -> None:
        super().__init__()
        self._name = name
        self._descriptor = descriptor
        self._send = send
        self._interrupter = interrupter
        self._lock = threading.RLock()
        self._partial: dict[Key, str] = {}
        self._bytes = _Bytes(self)
        self.on_partial: Callable[[], None] = _nothing
        self.line_buffering = True
        self.mode = "w"

    # --- what programs expect of a text stream ---

    @property
    def name(self) -> str:
        return f"<{self._name}>"

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    @property
    def buffer(self) -> io.BufferedIOBase:
        return self._bytes

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return False

    def reconfigure(self, **_: Any) -> None:
        """Accepted: encoding and buffering are fixed here."""

    def close(self) -> None:
        """User code may close it; later prints of the next input must still work."""
        self.flush()

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        known = context.current()
        key = (known.call, known.index) if known else None
        with self._interrupter, self._lock:
            whole = self._partial.pop(key, "") + text
            cut = whole.rfind("\n") + 1
            if cut:
                self._send(self._name, whole[:cut], key)
            if len(whole) > cut:
                self._partial[key] = whole[cut:]
                self.on_partial()
        return len(text)

    def flush(self) -> None:
        self._bytes.finish()
        self.flush_partial()

    def flush_partial(self) -> None:
        """Send what is not a whole line yet, of all inputs."""
        if not self._partial:
            return
        with self._interrupter, self._lock:
            waiting, self._partial = self._partial, {}
            for key, text in waiting.items():
                self._send(self._name, text, key)

    def connect(self, send: Send, interrupter: Interrupter) -> None:
        """Send elsewhere from now on: this process was forked from the one that made the stream."""
        self._lock = threading.RLock()
        self._partial = {}
        self._send, self._interrupter = send, interrupter

    def abandon(self) -> None:
        """From now on, write to the descriptor: this process does not own the socket. Line by line, so that the lines
        of several such children stay whole."""
        self._lock = threading.RLock()  # another thread may have held the old one when the fork happened
        self._partial = {}
        self._send = self._write_descriptor
        self.on_partial = _nothing  # its thread was not forked

    def _write_descriptor(self, _name: str, text: str, _key: Key) -> None:
        data = text.encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(self._descriptor, data) :]


class _Bytes(io.BufferedIOBase):
    """`sys.stdout.buffer`: UTF-8 bytes become text of the stream."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, data: Any) -> int:
        raw = bytes(data)
        self._stream.write(self._decoder.decode(raw))
        return len(raw)

    def flush(self) -> None:
        self._stream.flush_partial()

    def finish(self) -> None:
        rest = self._decoder.decode(b"", final=True)
        if rest:
            self._stream.write(rest)

    def close(self) -> None:
        """See `Stream.close`."""


class Capture:
    """Both streams, and the thread that sends partial lines."""

    def __init__(self, send: Send, interrupter: Interrupter) -> None:
        self._streams = [Stream("stdout", 1, send, interrupter), Stream("stderr", 2, send, interrupter)]
        self._partial = threading.Event()
        self._timer: Optional[threading.Thread] = None
        self._c_library: Optional[Any] = None

    def connect(self, send: Send, interrupter: Interrupter) -> None:
        """Keep the streams, which user code may have remembered (logging does), but send to another agent's end."""
        for stream in self._streams:
            stream.connect(send, interrupter)

    def install(self) -> None:
        """Replace the interpreter's streams."""
        sys.stdout, sys.stderr = self._streams
        sys.__stdout__, sys.__stderr__ = self._streams  # type: ignore[misc,assignment]

    def start_timer(self) -> None:
        """Send partial lines by time from now on. Not in templates: its thread would forbid the fork."""
        for stream in self._streams:
            stream.on_partial = self._partial_written

    def flush(self) -> None:
        """Everything printed so far is with the agent afterwards."""
        for stream in self._streams:
            stream.flush()
        self._flush_c()

    def _flush_c(self) -> None:
        """What C code printed: it buffers whole blocks on a pipe."""
        # Importing ctypes for this would cost every cold start 5 ms; numpy and most code that prints from C has
        # imported it already.
        if self._c_library is None and "ctypes" in sys.modules:
            try:
                # Kept: to make one is to make classes, 150 us with their garbage collection.
                self._c_library = sys.modules["ctypes"].CDLL(None)
            except (OSError, AttributeError):
                return
        if self._c_library is not None:
            self._c_library.fflush(None)

    def abandon(self) -> None:
        """In a child that user code forked: print straight to the descriptors."""
        for stream in self._streams:
            stream.abandon()

    def _partial_written(self) -> None:
        self._partial.set()
        if self._timer is None:
            self._timer = threading.Thread(target=self._send_by_time, name="squall-output", daemon=True)
            self._timer.start()

    def _send_by_time(self) -> None:
        pause = threading.Event()
        while True:
            self._partial.wait()
            pause.wait(PARTIAL_S)
            self._partial.clear()
            for stream in self._streams:
                stream.flush_partial()


def _nothing() -> None:
    """No timer: partial lines wait for a flush."""
