"""The sandbox's allow-list of system calls as an OCI seccomp profile, for engines that make the filter. Pure.

The same calls, with the same checks of arguments, as squall_isolation/seccomp.py. libseccomp accepts one condition on
an argument in a rule, and allows what any rule allows: "none of these values" becomes rules about the bits in which a
value differs from all of them.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import Any

from squall_isolation import seccomp, syscalls

_NATIVE = {"x86_64": ("SCMP_ARCH_X86_64", syscalls.X86_64), "aarch64": ("SCMP_ARCH_AARCH64", syscalls.AARCH64)}
_BITS = 32


def by_name(machine: str, *more: str) -> dict[str, Any]:
    """The calls alone, without looking at their arguments. clone3 is left to the kernel: gVisor's does not have it, and
    says so in the way that makes libraries use clone."""
    architecture, numbers = _NATIVE[machine]
    return _profile(architecture, [{"names": sorted({*numbers, "clone3", *more}), "action": "SCMP_ACT_ALLOW"}])


def profile(machine: str) -> dict[str, Any]:
    """The profile. Calls through another machine's interface end the process: their architectures are not listed."""
    architecture, numbers = _NATIVE[machine]
    checked = {"clone", "socket", "socketpair", "ioctl", "personality"}
    rules: list[dict[str, Any]] = [
        {"names": sorted(set(numbers) - checked), "action": "SCMP_ACT_ALLOW"},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
        _rule(["clone"], _condition(0, seccomp.NAMESPACES, 0)),
        *(_rule(["socket", "socketpair"], _condition(0, None, family)) for family in seccomp.FAMILIES),
        *(_rule(["personality"], _condition(0, None, value)) for value in seccomp.PERSONALITIES),
        *(_rule(["ioctl"], _condition(1, *pattern)) for pattern in none_of(seccomp.FORBIDDEN_IOCTLS)),
    ]
    return _profile(architecture, rules)


def _profile(architecture: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "architectures": [architecture],
        "syscalls": rules,
    }


def none_of(values: Sequence[int], mask: int = 0, prefix: int = 0, bit: int = _BITS - 1) -> Iterator[tuple[int, int]]:
    """Masks and values, one of which fits every number of 32 bits but these."""
    if not values:
        yield mask, prefix
    elif bit >= 0:
        for side in (0, 1 << bit):
            yield from none_of([v for v in values if v & (1 << bit) == side], mask | 1 << bit, prefix | side, bit - 1)


def _rule(names: list[str], condition: dict[str, Any]) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ALLOW", "args": [condition]}


def _condition(index: int, mask: int | None, value: int) -> dict[str, Any]:
    if mask is None:
        return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
