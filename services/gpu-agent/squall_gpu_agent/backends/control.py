"""A control socket: frames and descriptors between the agent and a process it trusts to start others.

Owns one end of a unix stream socket on the agent's event loop. Knows nothing of what the frames mean.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from squall_runner.frames import BadFrame, Decoder, Frame, encode


class ControlClosed(Exception):
    """The process at the other end has ended."""


class Control:
    """The agent's end. Callbacks run on the loop, `on_closed` once."""

    def __init__(self, sock: socket.socket, on_frame: Callable[[Frame], None], on_closed: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._decoder = Decoder()
        self._waiting: deque[tuple[memoryview, list[int]]] = deque()
        self._writing = False
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._loop.add_reader(sock, self._readable)

    def send(self, kind: int, meta: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send one frame, now or when there is room; the descriptors stay the caller's.

        Raises `ControlClosed`, and `OSError` when they cannot be copied; then nothing is sent.
        """
        if not self._open:
            raise ControlClosed
        copies = _copies(descriptors)
        self._waiting.append((memoryview(encode(kind, dict(meta))), copies))
        self._write()

    def close(self) -> None:
        """Close without calling `on_closed`; the other end sees the end of the stream."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._sock)
        if self._writing:
            self._loop.remove_writer(self._sock)
        self._sock.close()
        while self._waiting:
            _close(self._waiting.popleft()[1])

    def _write(self) -> None:
        while self._waiting:
            data, descriptors = self._waiting[0]
            passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                sent = self._sock.sendmsg([data], passed)
            except BlockingIOError:
                break
            except OSError:
                self._lost()
                return
            _close(descriptors)
            self._waiting.popleft()
            if sent < len(data):
                self._waiting.appendleft((data[sent:], []))
        self._wait_for_room(bool(self._waiting))

    def _wait_for_room(self, wanted: bool) -> None:
        if wanted and not self._writing:
            self._loop.add_writer(self._sock, self._write)
        elif self._writing and not wanted:
            self._loop.remove_writer(self._sock)
        self._writing = wanted

    def _readable(self) -> None:
        try:
            data = self._sock.recv(1 << 16)
            frames = self._decoder.feed(data)
        except BlockingIOError:
            return
        except (OSError, BadFrame):
            data, frames = b"", []
        try:
            for frame in frames:
                self._on_frame(frame)
        except (KeyError, TypeError, ValueError):
            data = b""  # user code runs in templates: one that breaks the protocol has ended for us
        if not data:
            self._lost()

    def _lost(self) -> None:
        if self._open:
            self.close()
            self._on_closed()


def _copies(descriptors: Sequence[int]) -> list[int]:
    copies: list[int] = []
    try:
        for descriptor in descriptors:
            copies.append(os.dup(descriptor))  # noqa: PERF401  # what is open must be known when one fails
    except OSError:
        _close(copies)
        raise
    return copies


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
