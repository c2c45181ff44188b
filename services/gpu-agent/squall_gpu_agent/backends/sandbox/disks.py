"""Disks of sandboxes that ask for more than is kept in memory: a file of this machine as a block device.

The file has no name and its room is taken when it is made: what a container was promised cannot be used up by others,
and a machine that has it not says so at once. The kernel takes device and file away with the last descriptor or mount
of them, so nothing is left of an agent or a launcher that was killed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

RESERVE_MIB = 1024
"""Of the machine's disk that no container is promised."""
PROBE_MIB = 16
TRIES = 32
MAKE_S = 60.0
_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A  # LOOP_CTL_GET_FREE, LOOP_CONFIGURE (Linux 5.8)
_AUTOCLEAR, _DIRECT_IO = 4, 16
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
_NO_JOURNAL = ("-t", "ext4", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", "nodiscard,lazy_itable_init=1")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)


class Disk:
    """One that is mounted nowhere yet. It goes with its last user, of which this is one until `close`."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        """Of its device; nobody else's while this is open."""
        self._descriptor = descriptor

    def close(self) -> None:
        """Leave it to whoever has mounted it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        """A start that was given up while its disk was being made."""
        self.close()


def make(folder: Path, mib: int) -> Disk:
    """An empty one on the file system of `folder`. Blocks for some 50 ms, longer if it is large. Raises `OSError`."""
    program = shutil.which("mke2fs", path=_PATH)
    if program is None:
        raise OSError(0, "the program mke2fs is not there (Debian's package e2fsprogs)")
    file = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        _take_room(file, folder, mib)
        _format(program, file)
        return _attach(file)
    finally:
        os.close(file)


def trouble(folder: Path) -> str:
    """Why there are none on this machine; "" = one was made just now."""
    try:
        make(folder, PROBE_MIB).close()
    except OSError as error:
        return str(error.strerror or error)
    return ""


def _take_room(file: int, folder: Path, mib: int) -> None:
    disk = os.statvfs(folder)
    free_mib = disk.f_bavail * disk.f_frsize >> 20
    if mib + RESERVE_MIB > free_mib:
        raise OSError(0, f"{free_mib} MiB of this machine's disk are free, {RESERVE_MIB} of which are kept")
    if _libc.fallocate(file, 0, 0, mib << 20) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{mib} MiB of this machine's disk cannot be reserved: {os.strerror(code)}")


def _format(program: str, file: int) -> None:
    try:
        made = _run(program, file)
    except subprocess.SubprocessError as error:
        raise OSError(0, f"mke2fs: {error}") from error
    if made.returncode != 0:
        raise OSError(0, f"mke2fs ended with status {made.returncode}: {made.stderr.strip()[:500]}")


def _run(program: str, file: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, "-q", "-F", *_NO_JOURNAL, f"/proc/self/fd/{file}"],
        pass_fds=[file],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=MAKE_S,
        env={"PATH": _PATH, "LC_ALL": "C"},
    )


def _attach(file: int) -> Disk:
    """As the first device that is free: several agents and other programs may ask at once."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                _configure(device, file)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return Disk(path, device)
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, f"no loop device could be had in {TRIES} tries")


def _configure(device: int, file: int) -> None:
    # struct loop_config: descriptor, block size, struct loop_info64 (of which its flags), reserved. Without the page
    # cache below it: what is written would be in memory twice.
    words = [
        (struct.pack("2I", file, 0) + struct.pack("5Q4I", 0, 0, 0, 0, 0, 0, 0, 0, flags)).ljust(304, b"\0")
        for flags in (_AUTOCLEAR | _DIRECT_IO, _AUTOCLEAR)
    ]
    try:
        fcntl.ioctl(device, _CONFIGURE, words[0])
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot do without
            raise
        fcntl.ioctl(device, _CONFIGURE, words[1])
