"""Processes that have files open: whether one has ended by a signal, and so did not finish what it wrote.

The kernel closes the files of a process that is killed as it closes those of one that ends, and says so to nobody.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

_GET_INFO = 0xC040FF0B
"""PIDFD_GET_INFO of 64 bytes (Linux 6.13)."""
_INFO = struct.Struct("<2Q11Ii")
_EXIT = 1 << 3
"""PIDFD_INFO_EXIT (Linux 6.15): known also when its parent has heard of it."""
_EXITING = 4
"""PF_EXITING among the flags of a process: its files are being closed."""
SIGKILL_BIT = 1 << 8
BURIAL_S = 1.0
"""A process whose parent hears of it at this moment is gone from /proc a little before its end can be asked for."""
_BURIAL_POLL_S = 0.001


class Writer:
    """A process that has opened a file to write to it."""

    def __init__(self, thread: int) -> None:
        self.process = process_of(thread)
        self.has_closed = False
        """It has closed a descriptor of the file, also by ending: the kernel makes whoever ends by itself wait until
        the server has heard of it, and does not always tell the server of whoever is killed."""
        try:
            self._descriptor = os.pidfd_open(self.process) if self.process else -1
        except OSError:
            self._descriptor = -1

    def was_killed(self) -> bool:
        """False if it lives, has ended by itself, or was never to be seen from here."""
        if self._descriptor < 0:
            return False
        status = self._ended_with()
        return not self.has_closed if status is None else os.WIFSIGNALED(status)

    def _ended_with(self) -> int | None:
        """The wait status with which it has ended or is ending; 0 while it lives, None when nobody knows any more."""
        until = time.monotonic() + BURIAL_S
        while True:
            try:
                info = _INFO.unpack(fcntl.ioctl(self._descriptor, _GET_INFO, _INFO.pack(_EXIT, *(0,) * 13)))
            except OSError:
                return _ends_with(self.process)  # an older kernel
            if info[0] & _EXIT:
                status: int = info[-1]
                return status
            ends_with = _ends_with(self.process)  # its parent has not heard of it yet
            if ends_with is not None or time.monotonic() > until:
                return ends_with
            time.sleep(_BURIAL_POLL_S)

    def close(self) -> None:
        """It has no file open any more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def process_of(thread: int) -> int:
    """Of a thread; 0 if it has ended, or is not to be seen from here."""
    for name, value in _status(thread):
        if name == "Tgid":
            return int(value)
    return 0


def is_being_killed(thread: int) -> bool:
    """Whether it would end if it did not wait for an answer."""
    pending = [int(value, 16) for name, value in _status(thread) if name in ("SigPnd", "ShdPnd")]
    return any(mask & SIGKILL_BIT for mask in pending)


def _status(thread: int) -> list[tuple[str, str]]:
    try:
        with open(f"/proc/{thread}/status") as file:
            pairs = [line.partition(":") for line in file]
    except OSError:
        return []
    return [(name, value.strip()) for name, _, value in pairs]


def _ends_with(process: int) -> int | None:
    """The wait status with which it ends; 0 while it lives, None when it is being buried."""
    try:
        with open(f"/proc/{process}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    if not int(fields[6]) & _EXITING:
        return 0
    threads, status = int(fields[17]), int(fields[49])
    return status if threads else None
