"""The seccomp filter of sandboxes and build rooms, as the BPF program that the kernel runs at each system call. Pure.

An allow-list (syscalls.py). Refused calls fail with EPERM; calls that are younger than the list fail with ENOSYS, so
that libraries fall back to older ones, and so does clone3, whose flags a filter cannot read. A call made through
another machine's interface (32-bit, x32) ends the process: its numbers mean something else.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import pairwise

from squall_isolation import syscalls

ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NAMESPACES = 0x7E020000
"""Every CLONE_NEW* flag of clone; CLONE_NEWTIME is only for unshare and clone3, which are refused."""
FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK. The others are kernel code that programs do not need, which the kernel loads
when a socket asks for it; some (AF_VSOCK) know no network namespaces."""
FORBIDDEN_IOCTLS = (0x5412, 0x541C, 0x5423)
"""TIOCSTI and TIOCLINUX put words into a terminal's mouth; TIOCSETD loads line disciplines, which is kernel code."""
PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)

_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_NOT_LESS, _JUMP_SET, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_X32 = 0x40000000
_CLONE3, _NEWEST = 435, 462


class _Machine:
    def __init__(self, arch: int, numbers: Mapping[str, int], setns: int, chroot: int) -> None:
        self.arch = arch
        self.numbers = numbers
        self.setns = setns
        self.chroot = chroot


_MACHINES = {
    "x86_64": _Machine(0xC000003E, syscalls.X86_64, 308, 161),
    "aarch64": _Machine(0xC00000B7, syscalls.AARCH64, 268, 51),
}


def supported(machine: str) -> bool:
    """Whether there is a list for this kind of processor."""
    return machine in _MACHINES


@cache
def program(machine: str, *, may_join_slots: bool = False, builds: bool = False) -> bytes:
    """The filter; `may_join_slots` adds setns, for templates only, `builds` adds chroot, which installers use."""
    this = _MACHINES[machine]
    allowed = set(this.numbers.values())
    allowed |= {this.setns} if may_join_slots else set()
    allowed |= {this.chroot} if builds else set()
    checked = {this.numbers[name]: body for name, body in _CHECKS.items() if name in this.numbers}
    code = [
        _op(_LOAD, _ARCH),
        _jump(_JUMP_EQUAL, this.arch, 1, 0),
        _op(_RETURN, KILL_PROCESS),
        _op(_LOAD, _NUMBER),
        _jump(_JUMP_SET, _X32, 0, 1),
        _op(_RETURN, KILL_PROCESS),
    ]
    for number, body in checked.items():
        code += [_jump(_JUMP_EQUAL, number, 0, len(body)), *body]
    for missing in (_jump(_JUMP_EQUAL, _CLONE3, 0, 1), _jump(_JUMP_GREATER, _NEWEST, 0, 1)):
        code += [missing, _op(_RETURN, ERRNO | errno.ENOSYS)]
    ranges = list(_ranges(allowed - set(checked)))
    for first, last in ranges:
        # In rising order, so a number below the range lies in a gap.
        code += [_jump(_JUMP_NOT_LESS, first, 1, 0), _refuse(), _jump(_JUMP_GREATER, last, 1, 0), _op(_RETURN, ALLOW)]
    return b"".join([*code, _refuse()])


def _ranges(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    ordered = sorted(numbers)
    cuts = [place for place, (one, two) in enumerate(pairwise(ordered), 1) if two != one + 1]
    for start, stop in pairwise([0, *cuts, len(ordered)]):
        yield ordered[start], ordered[stop - 1]


def _op(code: int, value: int) -> bytes:
    return struct.pack("HBBI", code, 0, 0, value)


def _jump(code: int, value: int, when_true: int, when_false: int) -> bytes:
    return struct.pack("HBBI", code, when_true, when_false, value)


def _refuse() -> bytes:
    return _op(_RETURN, ERRNO | errno.EPERM)


def _argument(place: int) -> bytes:
    return _op(_LOAD, _ARGUMENTS + 8 * place)  # the lower half; the kernel looks at no more of these


def _none_of(place: int, values: tuple[int, ...]) -> list[bytes]:
    checks = [step for value in values for step in (_jump(_JUMP_EQUAL, value, 0, 1), _refuse())]
    return [_argument(place), *checks, _op(_RETURN, ALLOW)]


def _one_of(place: int, values: tuple[int, ...]) -> list[bytes]:
    checks = [step for value in values for step in (_jump(_JUMP_EQUAL, value, 0, 1), _op(_RETURN, ALLOW))]
    return [_argument(place), *checks, _refuse()]


def _no_bits(place: int, bits: int) -> list[bytes]:
    return [_argument(place), _jump(_JUMP_SET, bits, 0, 1), _refuse(), _op(_RETURN, ALLOW)]


_CHECKS = {
    "clone": _no_bits(0, NAMESPACES),
    "socket": _one_of(0, FAMILIES),
    "socketpair": _one_of(0, FAMILIES),
    "ioctl": _none_of(1, FORBIDDEN_IOCTLS),
    "personality": _one_of(0, PERSONALITIES),
}
