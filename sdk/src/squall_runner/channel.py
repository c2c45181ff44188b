"""The runner's end of the socket: frames out from any thread, frames in for one reader.

Owns the socket and the files for payloads that are too large for a frame.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import socket
import threading
from typing import Any, NoReturn, Optional

from squall_runner import frames
from squall_runner.interrupt import Interrupter, Key

INLINE_LIMIT_BYTES = 64 * 1024
"""Payloads above this are written to a file and named by it."""
READ_BYTES = 1 << 16
LOG_CHUNK_CHARACTERS = 256 * 1024


class Channel:
    """One connection to the agent."""

    def __init__(self, sock: socket.socket, interrupter: Interrupter) -> None:
        self._sock = sock
        self._interrupter = interrupter
        self._lock = threading.Lock()
        self._decoder = frames.Decoder()
        self._ready: list[frames.Frame] = []
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._files = itertools.count()
        self._abandoned = False
        self.scratch = ""

    def send(self, kind: int, meta: dict[str, Any], payload: bytes = b"") -> None:
        """Write one frame; a payload over the inline limit goes to a file that `meta["file"]` names."""
        if len(payload) > INLINE_LIMIT_BYTES:
            meta = {**meta, "file": self._to_file(payload)}
            payload = b""
        self._write(frames.encode(kind, meta, payload))

    def log(self, stream: str, text: str, key: Optional[Key]) -> None:
        """Send printed text, tagged with the input it belongs to."""
        meta: dict[str, Any] = {"stream": stream}
        if key is not None:
            meta["call"], meta["index"] = key
        for start in range(0, len(text), LOG_CHUNK_CHARACTERS):
            chunk = text[start : start + LOG_CHUNK_CHARACTERS].encode("utf-8", "backslashreplace")
            self._write(frames.encode(frames.FromRunner.LOG, meta, chunk))

    def receive(self) -> Optional[frames.Frame]:
        """The next frame; None when the agent is gone."""
        try:
            return frames.receive(self._sock, self._decoder, self._ready)
        except OSError:
            return None

    def take_ready(self) -> list[frames.Frame]:
        """Frames that `receive` has read ahead."""
        found, self._ready = self._ready, []
        return found

    def read(self, wait: bool = True) -> list[frames.Frame]:
        """The frames that the next bytes complete; none when `wait` is false and nothing is there."""
        try:
            data = self._sock.recv(READ_BYTES, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError:
            end_now()
        if not data:
            end_now()
        return self._decoder.feed(data)

    def readable(self, within_s: float) -> bool:
        """Whether bytes arrive within that time."""
        return bool(self._poll.poll(within_s * 1000))

    @property
    def abandoned(self) -> bool:
        """Whether this process is a child that user code forked."""
        return self._abandoned

    def abandon(self) -> None:
        """Called in a child that user code forked: the socket belongs to the parent."""
        self._lock = threading.Lock()  # another thread may have held the old one when the fork happened
        self._abandoned = True
        self._sock.close()

    def _write(self, data: bytes) -> None:
        with self._interrupter, self._lock:
            if self._abandoned:
                return
            try:
                self._sock.sendall(data)
            except OSError:
                end_now()

    def _to_file(self, payload: bytes) -> str:
        name = f"payload-{os.getpid()}-{next(self._files)}"
        path = os.path.join(self.scratch, name)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(payload)
        except OSError as error:
            os.unlink(path)  # or half a payload would take what room there is
            error.filename = path
            raise
        return name


def end_now() -> NoReturn:
    """The agent is gone: nobody wants anything from this process or from what it started."""
    try:
        os.killpg(0, signal.SIGKILL)
    finally:
        os._exit(137)
