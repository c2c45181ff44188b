"""What a process writes to descriptors 1 and 2: C code, subprocesses. Owns the agent's ends of the two pipes."""

from __future__ import annotations

import asyncio
import codecs
import os
import select
from collections.abc import Callable

MAX_PIPE_READ_BYTES = 1 << 16
MAX_PIPE_READS = 16


class Pipes:
    """Both pipes of one process."""

    def __init__(self, on_text: Callable[[str, str], None]) -> None:
        """`on_text` gets the stream's name and the text."""
        self._on_text = on_text
        self._loop = asyncio.get_running_loop()
        self._open: dict[int, tuple[str, codecs.IncrementalDecoder]] = {}
        self._poll = select.poll()

    def add(self, stream: str, descriptor: int) -> None:
        """Read this one from now on."""
        os.set_blocking(descriptor, False)
        self._open[descriptor] = (stream, codecs.getincrementaldecoder("utf-8")("replace"))
        self._loop.add_reader(descriptor, self._read, descriptor)
        self._poll.register(descriptor, select.POLLIN)

    def read_all(self) -> None:
        """Pass on what was written until now."""
        # At each input's end, mostly for nothing: one system call instead of a failing read from each pipe.
        if self._open and self._poll.poll(0):
            for descriptor in list(self._open):
                self._read(descriptor)

    def close(self) -> None:
        """The process has ended; what it started may still hold the other ends."""
        self.read_all()
        for descriptor in list(self._open):
            self._close(descriptor)

    def _read(self, descriptor: int) -> None:
        for _ in range(MAX_PIPE_READS):  # a child that never stops printing must not stop the agent
            if descriptor not in self._open:
                return
            try:
                data = os.read(descriptor, MAX_PIPE_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            stream, decoder = self._open[descriptor]
            text = decoder.decode(data, final=not data)
            if text:
                self._on_text(stream, text)
            if not data:
                self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        if self._open.pop(descriptor, None) is not None:
            self._loop.remove_reader(descriptor)
            self._poll.unregister(descriptor)
            os.close(descriptor)
