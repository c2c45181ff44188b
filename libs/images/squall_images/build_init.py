"""Runs one build command in a root file system of its own. A program: `python -I -S build_init.py`, standard library
only, read line by line before it is trusted. It gets its order as JSON on descriptor 3, a unix socket.

What the command has: an overlay of the image's layers, whose upper folder becomes the new layer; namespaces of its own
for processes, mounts, network, IPC, host name and users. Its root is user 0 in a user namespace whose ids are nobody's
on the machine; files are stored as the machine's root's through id-mapped mounts. Its network has one address, a proxy
on the loopback interface, whose listening socket goes back over descriptor 3: whoever started this decides what can be
reached. The command's exit code is ours.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
from typing import Any, NoReturn

LIBC = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
MNT_DETACH = 2
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442  # the same numbers on every architecture that is not alpha
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, MOVE_MOUNT_F_EMPTY_PATH = 1, 0o2000000, 4
MOUNT_ATTR_IDMAP, MOUNT_ATTR_RDONLY = 0x100000, 1
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_SECUREBITS, NO_SETUID_FIXUP = 1, 22, 24, 28, 1 << 2
SECCOMP_MODE_FILTER = 2
# chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, sys_chroot, setfcap
CAPABILITIES = (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31)
IDS = 65536
FAILED = 125
"""Exit code when the root could not be made; the reason is on standard error."""
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def main() -> None:
    channel = socket.socket(fileno=3)
    order: dict[str, Any] = json.loads(_line(channel))
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        users = _user_namespace(order["first_id"])
        _unshare(NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS)
        listener = _loopback(order["port"])
        socket.send_fds(channel, [b"n"], [listener.fileno()])
        listener.close()
    except OSError as error:
        _fail(error)
    child = os.fork()
    if child == 0:
        try:
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            _enter(order, users)
        except OSError as error:
            _fail(error)
    os.close(users)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


def _fail(error: OSError) -> NoReturn:
    sys.stderr.write(f"the build's root could not be made: {error}\n")
    sys.stderr.flush()
    os._exit(FAILED)


def _line(channel: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\n"):
        part = channel.recv(1 << 16)
        if not part:
            os._exit(FAILED)
        received += part
    return received


# --- what is made before the command, as the machine's root ---


def _user_namespace(first: int) -> int:
    """A user namespace whose ids from 0 are ours from `first`, held open by nobody but the descriptor."""
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = LIBC.unshare(NEWUSER)
        os.write(ready[1], b"x" if code == 0 else b"e")
        os.read(go[0], 1)
        os._exit(0)
    try:
        if os.read(ready[0], 1) != b"x":
            raise OSError("user namespaces are not allowed on this machine")
        for kind in ("uid_map", "gid_map"):
            with open(f"/proc/{child}/{kind}", "w") as table:
                table.write(f"0 {first} {IDS}\n")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.write(go[1], b"x")
        os.waitpid(child, 0)
        for end in (*ready, *go):
            os.close(end)


def _loopback(port: int) -> socket.socket:
    """The only thing that the new network has: the loopback interface, with a listening socket for the proxy."""
    with socket.socket() as control:
        name = b"lo".ljust(16, b"\0")
        flags = struct.unpack("16sh", fcntl.ioctl(control, SIOCGIFFLAGS, name + b"\0" * 24)[:18])[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, name + struct.pack("h", flags | IFF_UP) + b"\0" * 22)
    return socket.create_server(("127.0.0.1", port))


def _enter(order: dict[str, Any], users: int) -> None:
    """Make the root, give up the machine's, become the command."""
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    work = order["work"]
    # All of it on one small file system: nothing of it is seen outside of this mount namespace.
    _mount("tmpfs", work, "tmpfs", MS_NODEV, "size=1m")
    lowers = [_mapped(lower, f"{work}/lower{number}", users, True) for number, lower in enumerate(order["lowers"])]
    _mapped(order["upper_parent"], f"{work}/upper", users)
    root = f"{work}/root"
    os.mkdir(root)
    # Files are made in the name of the room's root, the only one that the id-mapped upper folder knows; with the
    # machine's capabilities still, for marks of overlayfs that a user namespace may not set.
    if LIBC.prctl(PR_SET_SECUREBITS, NO_SETUID_FIXUP, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "securebits")
    LIBC.setfsgid(order["first_id"])
    LIBC.setfsuid(order["first_id"])
    _overlay(lowers, f"{work}/upper", root)
    _furnish(root, order, users)
    LIBC.setfsuid(0)
    LIBC.setfsgid(0)
    LIBC.prctl(PR_SET_SECUREBITS, 0, 0, 0, 0)
    _pivot(root)
    _become(order, users)


def _mapped(source: str, target: str, users: int, read_only: bool = False) -> str:
    """`source` at `target`, its owner 0 seen as the namespace's 0."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        with open(target, "a"):
            pass
    tree = _call(OPEN_TREE, AT_FDCWD, source.encode(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
    wanted = MOUNT_ATTR_IDMAP | (MOUNT_ATTR_RDONLY if read_only else 0)
    attributes = ctypes.create_string_buffer(struct.pack("QQQQ", wanted, 0, 0, users))
    _call(MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, attributes, 32)
    _call(MOVE_MOUNT, tree, b"", AT_FDCWD, target.encode(), MOVE_MOUNT_F_EMPTY_PATH)
    os.close(tree)
    return target


def _overlay(lowers: list[str], upper: str, root: str) -> None:
    """The layers, topmost first as the kernel wants them; an image of nothing still needs one below."""
    if not lowers:
        os.makedirs(f"{upper}/empty", exist_ok=True)
        lowers = [f"{upper}/empty"]
    shown = ":".join(reversed(lowers))
    # xino=off, index=off: what is written must not refer to the layers that happen to lie below now.
    options = (
        f"lowerdir={shown},upperdir={upper}/fs,workdir={upper}/work,index=off,xino=off,metacopy=off,redirect_dir=off"
    )
    _mount("overlay", root, "overlay", 0, options)


def _furnish(root: str, order: dict[str, Any], users: int) -> None:
    """/proc, /dev and what the order brings along."""
    own = f"uid={order['first_id']},gid={order['first_id']}"
    for folder in ("proc", "dev", "sys", "tmp"):
        os.makedirs(f"{root}/{folder}", exist_ok=True)
    _mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount("tmpfs", f"{root}/dev", "tmpfs", MS_NOSUID, f"size=64k,mode=755,{own}")
    for name in DEVICES:
        with open(f"{root}/dev/{name}", "w"):
            pass
        _mount(f"/dev/{name}", f"{root}/dev/{name}", "", MS_BIND)
    for folder, options in (("shm", f"size=256m,mode=1777,{own}"),):
        os.mkdir(f"{root}/dev/{folder}")
        _mount("tmpfs", f"{root}/dev/{folder}", "tmpfs", MS_NOSUID | MS_NODEV, options)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        os.symlink(f"/proc/self/fd/{number}", f"{root}/dev/{name}")
    os.symlink("/proc/self/fd", f"{root}/dev/fd")
    for bind in order["binds"]:
        _mapped(bind["source"], _below(root, bind["target"]), users, bind["read_only"])
    for secret in order["secrets"]:
        target = _below(root, secret["target"])
        os.makedirs(target, exist_ok=True)
        _mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"size=1m,mode=700,{own}")
        for name, value in secret["values"].items():
            with open(f"{target}/{os.path.basename(name)}", "w") as file:
                file.write(value)
            os.chown(file.name, order["first_id"], order["first_id"])


def _below(root: str, target: str) -> str:
    """A place in the root that no link of the image leads out of."""
    here = root
    parts = [part for part in target.split("/") if part not in ("", ".")]
    for part in parts[:-1]:
        here = f"{here}/{part}"
        if os.path.islink(here):
            raise OSError(f"{target} lies behind a link of the image")
        os.makedirs(here, exist_ok=True)
    if os.path.islink(f"{here}/{parts[-1]}"):
        raise OSError(f"{target} is a link of the image")
    return f"{here}/{parts[-1]}"


def _pivot(root: str) -> None:
    os.chdir(root)
    if LIBC.pivot_root(b".", b".") != 0:
        raise OSError(ctypes.get_errno(), "pivot_root")
    if LIBC.umount2(b".", MNT_DETACH) != 0:
        raise OSError(ctypes.get_errno(), "umount2")
    os.chdir("/")


def _become(order: dict[str, Any], users: int) -> None:
    socket.sethostname("build")
    if LIBC.setns(users, NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(users)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    _give_up_rights()
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of credentials has cleared it
    os.umask(0o022)
    try:
        os.makedirs(order["workdir"], exist_ok=True)
        os.chdir(order["workdir"])
    except OSError as error:
        raise OSError(f"workdir {order['workdir']}: {error}") from error
    for signum in (signal.SIGPIPE, signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL)
    os.closerange(3, 65536)
    _limit(order)
    _filter(base64.b64decode(order["filter"]))
    command = order["command"]
    try:
        os.execvpe(command[0], command, order["env"])
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(127)


def _give_up_rights() -> None:
    """What the command's root may do in its user namespace; and no namespace below it, where it could do the rest."""
    with open("/proc/sys/user/max_user_namespaces", "w") as most:
        most.write("0")
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for number in range(last + 1):
        # The exec that follows takes all others from what is effective now, too.
        if number not in CAPABILITIES and LIBC.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def _limit(order: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if order["file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"], order["file_bytes"]))


def _filter(program: bytes) -> None:
    """The system calls that are left. Set with the rights of the room's root and not with no-new-privs, so that sudo
    and su work in builds as in any other root: what they can get is bounded already."""
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code)))
    if LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the filter of system calls")


# --- the kernel ---


def _unshare(flags: int) -> None:
    if LIBC.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    if LIBC.mount(source.encode(), target.encode(), kind.encode() or None, flags, options.encode() or None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {kind or 'bind'} {target}: {os.strerror(number)}")


def _call(number: int, *arguments: Any) -> int:
    given = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = LIBC.syscall(ctypes.c_long(number), *given)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"system call {number}: {os.strerror(code)}")
    return int(result)


if __name__ == "__main__":
    main()
