"""System calls that Python has no name for. One thin function each; decides nothing.

Every function raises `OSError` with the call's name in it. Used in the launcher and its children, which are
single-threaded (`unshare` and `setns` of a user namespace are refused in a process with threads), and by threads of the
agent that make links.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 16384, 1 << 18
MS_NOATIME = 1024
MNT_DETACH = 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC, ATTR_IDMAP = 1, 2, 4, 8, 0x100000

PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 4, 22, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL, SECCOMP_MODE_FILTER = 4, 2

_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _MOVE_FROM_FD = 1, 4
_CAP_VERSION = 0x20080522

_NUMBERS = {
    "x86_64": {"pivot_root": 155, "open_tree": 428, "move_mount": 429, "mount_setattr": 442},
    "aarch64": {"pivot_root": 41, "open_tree": 428, "move_mount": 429, "mount_setattr": 442},
}
MACHINE = platform.machine()
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _syscall(name: str, what: str, *arguments: object) -> int:
    return _checked(int(_libc.syscall(_NUMBERS[MACHINE][name], *arguments)), what)


def _c(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def unshare(flags: int) -> None:
    """New namespaces for this process; a new pid namespace is for its next child."""
    _checked(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """Enter a namespace; a pid namespace is for the next child."""
    _checked(_libc.setns(descriptor, kind), "setns")


def mount(source: str, target: str, kind: str | None, flags: int = 0, options: str | None = None) -> None:
    """mount(2)"""
    done = _libc.mount(_c(source), _c(target), _c(kind), ctypes.c_ulong(flags), _c(options))
    _checked(done, f"mount of {kind or source} on {target}")


def unmount(target: str) -> None:
    """Take it out of sight at once; it ends with its last user."""
    _checked(_libc.umount2(_c(target), MNT_DETACH), f"umount of {target}")


def pivot_root(folder: str) -> None:
    """Make `folder`, a mount, the root of this mount namespace, and let go of the old one."""
    os.chdir(folder)
    _syscall("pivot_root", f"pivot_root to {folder}", b".", b".")
    _checked(_libc.umount2(b".", MNT_DETACH), "umount of the old root")
    os.chdir("/")


def open_tree(path: str, recursive: bool = False) -> int:
    """A copy of what is mounted at a path, mounted nowhere yet."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _syscall("open_tree", f"open_tree of {path}", _AT_FDCWD, _c(path), flags)


def set_attributes(tree: int, attributes: int, userns: int = 0) -> None:
    """Of a tree that is mounted nowhere yet: read-only and the like; ids mapped as in a user namespace."""
    packed = struct.pack("4Q", attributes, 0, 0, userns)
    what = "mount_setattr (mapping ids needs a file system that can, such as ext4 or xfs, and Linux 5.19)"
    _syscall("mount_setattr", what, tree, b"", _AT_EMPTY_PATH, packed, len(packed))


def attach_tree(tree: int, path: str) -> None:
    """Mount it at a path."""
    _syscall("move_mount", f"move_mount to {path}", tree, b"", _AT_FDCWD, _c(path), _MOVE_FROM_FD)


def set_hostname(name: str) -> None:
    """Of this uts namespace."""
    _checked(_libc.sethostname(name.encode(), len(name.encode())), "sethostname")


def prctl(option: int, first: int = 0, second: int | ctypes.Array[ctypes.c_char] = 0) -> None:
    """prctl(2)"""
    _checked(_libc.prctl(option, ctypes.c_ulong(first), second, 0, 0), f"prctl {option}")


def keep_capabilities(kept: frozenset[int]) -> None:
    """Drop all others, also from what programs started later could get."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for number in range(last + 1):
        if number not in kept:
            prctl(PR_CAPBSET_DROP, number)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    mask = sum(1 << number for number in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header, data = struct.pack("Ii", _CAP_VERSION, 0), struct.pack("6I", low, low, 0, high, high, 0)
    _checked(_libc.capset(header, data), "capset")


def filter_system_calls(program: bytes) -> None:
    """Install a seccomp filter for this process and all that it starts."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header, len(header)))
