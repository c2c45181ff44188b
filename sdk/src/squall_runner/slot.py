"""How a fork of a template gets into a slot: other namespaces, fewer capabilities, one filter of system calls more.

The agent checks from outside that all of it has happened: code of users ran in this process before.
"""

from __future__ import annotations

import base64
import ctypes
import os
import socket
import struct
from typing import NamedTuple

from squall_runner.settings import Settings

# In the order in which the agent sends them, after the pid namespace: mnt, net, ipc, uts, cgroup.
_KINDS = (0x20000, 0x40000000, 0x8000000, 0x4000000, 0x2000000)
_PID_KIND = 0x20000000
_PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 22, 24, 38, 47
_CAP_VERSION = 0x20080522
_LAST_OF_GVISOR = 37


class Terms(NamedTuple):
    """What forks may keep."""

    capabilities: int
    filter: bytes


def terms(settings: Settings) -> Terms:
    """As the agent said."""
    return Terms(settings.slot_capabilities, base64.b64decode(settings.slot_filter))


def settle(hostname: str, capabilities: int) -> None:
    """In a fork of a copy of a template, in gVisor, which has its namespaces already: a name of its own, and no right
    that its template had for that."""
    socket.sethostname(hostname)
    _keep_capabilities(ctypes.CDLL(None, use_errno=True), capabilities, _LAST_OF_GVISOR)


class Entrance:
    """The way into one slot."""

    def __init__(self, namespaces: list[int], terms: Terms) -> None:
        self._pid, self._others = namespaces[0], namespaces[1:]
        self._terms = terms
        self._libc = ctypes.CDLL(None, use_errno=True)

    def open(self) -> None:
        """In the template: the next child will be in the slot's pid namespace."""
        self._do(self._libc.setns(self._pid, _PID_KIND), "setns")

    def close(self) -> None:
        """In the template, after that child."""
        own = os.open("/proc/self/ns/pid", os.O_RDONLY)
        try:
            self._do(self._libc.setns(own, _PID_KIND), "setns")
        finally:
            os.close(own)

    def enter(self) -> None:
        """In the child."""
        with open("/proc/sys/kernel/cap_last_cap") as file:
            last = int(file.read())
        for descriptor, kind in zip(self._others, _KINDS):
            self._do(self._libc.setns(descriptor, kind), "setns")
        self._do(self._libc.prctl(_PR_CAP_AMBIENT, 4, 0, 0, 0), "prctl")  # none of them
        _keep_capabilities(self._libc, self._terms.capabilities, last)
        self._filter()

    def _filter(self) -> None:
        program = self._terms.filter
        code = ctypes.create_string_buffer(program, len(program))
        header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
        self._do(self._libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
        self._do(
            self._libc.prctl(_PR_SET_SECCOMP, 2, ctypes.create_string_buffer(header, len(header)), 0, 0), "seccomp"
        )

    def _do(self, result: int, what: str) -> None:
        _check(result, what)


def _keep_capabilities(libc: ctypes.CDLL, kept: int, last: int) -> None:
    for number in range(last + 1):
        if not kept >> number & 1:
            _check(libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "prctl")
    low, high = kept & 0xFFFFFFFF, kept >> 32
    data = struct.pack("6I", low, low, 0, high, high, 0)
    _check(libc.capset(struct.pack("Ii", _CAP_VERSION, 0), data), "capset")


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
