"""Mounts a bucket in the calling process's mount namespace, and hands the kernel's end to the bucket's server.

Imported where a container's view is made, as root or in a user namespace of its own: standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket

DEVICE = "/dev/fuse"
MS_NOSUID, MS_NODEV = 2, 4


def unusable() -> str:
    """Why buckets cannot be mounted on this machine; "" if they can."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return (
            f"{DEVICE} cannot be opened ({error.strerror}): load the kernel's module fuse, pass the device to the "
            "agent's container, or let its user open it"
        )
    return ""


def unusable_here() -> str:
    """The same, for as long as the agent runs: it looks once."""
    why = unusable()
    return why and f"{why}, and restart the agent"


def mount(server: str, place: str) -> None:
    """Mount the bucket of the server that listens at a socket. It ends with the last mount. Raises `OSError`."""
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={device},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},allow_other"
        libc = ctypes.CDLL(None, use_errno=True)
        flags = ctypes.c_ulong(MS_NOSUID | MS_NODEV)
        if libc.mount(b"squall-bucket", os.fsencode(place), b"fuse", flags, options.encode()) < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"mount of a bucket on {place}: {os.strerror(code)}")
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(10)
            _connect(link, server)
            socket.send_fds(link, [b"!"], [device])
    finally:
        os.close(device)


def _connect(link: socket.socket, path: str) -> None:
    """Also where the path is longer than addresses of sockets may be."""
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        link.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    except FileNotFoundError:
        raise OSError(errno.ENOTCONN, "the bucket's server has ended") from None
    finally:
        os.close(folder)
