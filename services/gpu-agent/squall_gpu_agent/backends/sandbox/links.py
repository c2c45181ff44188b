"""Links of sandboxes: the few messages to the kernel (rtnetlink) that make and remove one. Decides nothing.

A link is a veth pair: one end on the host, the other in a sandbox's network namespace, both up, with an address each,
and a default route inside. Blocking; for threads. Every function raises `OSError` with what was refused in it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Sequence
from ipaddress import IPv4Address

from squall_gpu_agent.backends.sandbox import kernel

_NEW_LINK, _DELETE_LINK, _NEW_ADDRESS, _NEW_ROUTE = 16, 17, 20, 24
_REQUEST, _ACK, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x200, 0x400
_ERROR = 2
_UP = 1
_NAME, _LINK_INFO, _NAMESPACE_FD = 3, 18, 28
_KIND, _DATA = 1, 2
_PEER = 1
_ADDRESS, _LOCAL = 1, 2
_OUT, _GATEWAY = 4, 5
_MAIN_TABLE, _BOOT, _EVERYWHERE, _UNICAST = 254, 3, 0, 1
_HEADER = struct.Struct("=IHHII")
PAIR_BITS = 31
"""Two addresses for each link."""
ANSWER_S = 10.0


def connect(name: str, inside: str, pid: int, addresses: tuple[IPv4Address, IPv4Address]) -> None:
    """Make the link `name`, whose other end is called `inside` in the network namespace of a process.

    `addresses`: of the host's end and of the other. When it fails after the link was made, it is still there."""
    outside, own = addresses
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.path.samestat(os.fstat(namespace), os.stat("/proc/self/ns/net")):
            raise OSError(errno.ESRCH, f"process {pid} has the network of the host")  # a pid of somebody else's by now
        with _Route() as route:
            route.ask(f"link {name}", _NEW_LINK, _EXCLUSIVE | _CREATE, _pair(name, inside, namespace))
            index = socket.if_nametoindex(name)
            route.ask(f"address of {name}", _NEW_ADDRESS, _EXCLUSIVE | _CREATE, _address(index, outside))
        within, index = _within(namespace, inside)
        with within:
            within.ask(f"address of {inside}", _NEW_ADDRESS, _EXCLUSIVE | _CREATE, _address(index, own))
            within.ask(f"link {inside}", _NEW_LINK, 0, _link(index, _UP))
            within.ask("default route", _NEW_ROUTE, _EXCLUSIVE | _CREATE, _default(index, outside))
    finally:
        os.close(namespace)


def remove(name: str) -> None:
    """Take a link away, both ends. One that is not there (any more) is no error."""
    with _Route() as route:
        try:
            route.ask(f"removal of {name}", _DELETE_LINK, 0, _link(0, 0) + _text(_NAME, name))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise


def names(prefix: str) -> Sequence[str]:
    """Links of the host whose names begin so."""
    return [name for name in os.listdir("/sys/class/net") if name.startswith(prefix)]


class _Route:
    """A socket to the kernel's tables, of the network namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(ANSWER_S)
        self._number = 0

    def __enter__(self) -> _Route:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """It is not needed any more."""
        self._socket.close()

    def ask(self, what: str, kind: int, flags: int, body: bytes) -> None:
        """Wait until it is done. Raises `OSError`."""
        self._number += 1
        length = _HEADER.size + len(body)
        self._socket.sendto(_HEADER.pack(length, kind, flags | _REQUEST | _ACK, self._number, 0) + body, (0, 0))
        while True:
            answer = self._socket.recv(1 << 16)
            _, kind, _, number, _ = _HEADER.unpack_from(answer)
            if kind == _ERROR and number == self._number:
                break
        (code,) = struct.unpack_from("=i", answer, _HEADER.size)
        if code:
            raise OSError(-code, f"{what}: {os.strerror(-code)}")


def _within(namespace: int, name: str) -> tuple[_Route, int]:
    """A socket to the tables of another network namespace, and the index that a link has there."""
    found: list[tuple[_Route, int]] = []
    failed: list[OSError] = []

    def enter() -> None:
        """In a thread of its own, which ends: no other ever runs in that namespace."""
        route = None
        try:
            kernel.setns(namespace, kernel.CLONE_NEWNET)
            route = _Route()
            found.append((route, socket.if_nametoindex(name)))
        except OSError as error:
            failed.append(error)
            if route is not None:
                route.close()

    thread = threading.Thread(target=enter, name="network-namespace")
    try:
        thread.start()
    except RuntimeError as error:  # there are too many
        raise OSError(errno.EAGAIN, f"link {name}: {error}") from error
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def _pair(name: str, inside: str, namespace: int) -> bytes:
    # Its other end cannot come up with it: veth asks for both ends then, and knows one.
    peer = _link(0, 0) + _text(_NAME, inside) + _attribute(_NAMESPACE_FD, struct.pack("=I", namespace))
    info = _text(_KIND, "veth") + _attribute(_DATA, _attribute(_PEER, peer))
    return _link(0, _UP) + _text(_NAME, name) + _attribute(_LINK_INFO, info)


def _address(index: int, address: IPv4Address) -> bytes:
    header = struct.pack("=BBBBI", socket.AF_INET, PAIR_BITS, 0, _EVERYWHERE, index)
    return header + _attribute(_LOCAL, address.packed) + _attribute(_ADDRESS, address.packed)


def _default(index: int, gateway: IPv4Address) -> bytes:
    header = struct.pack("=8BI", socket.AF_INET, 0, 0, 0, _MAIN_TABLE, _BOOT, _EVERYWHERE, _UNICAST, 0)
    return header + _attribute(_GATEWAY, gateway.packed) + _attribute(_OUT, struct.pack("=I", index))


def _link(index: int, flags: int) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _attribute(kind: int, data: bytes) -> bytes:
    length = 4 + len(data)
    return struct.pack("=HH", length, kind) + data + bytes(-length % 4)
