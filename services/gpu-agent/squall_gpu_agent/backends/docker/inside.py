"""The first process of an engine's container: takes its descriptors from the agent, starts the runner, buries the dead.

Runs in the container, with the image's Python (3.9 or later), standard library only. The runner is its child: signals
and orphans are as they are anywhere else, and nobody in the container may look into this process. It ends, and the
kernel ends all others with it, when the runner or the agent does.
"""

import ctypes
import json
import os
import select
import signal
import socket
import stat
import struct
import sys

DOOR, CODE, HOMES = "/run/squall/door/door", "/run/squall/code/root", "/run/squall/homes"
PR_SET_DUMPABLE = 4


def main(boot: str) -> None:
    """Never returns."""
    door = socket.socket(socket.AF_UNIX)
    door.connect(DOOR)
    length, descriptors, _, _ = socket.recv_fds(door, 4, 3)  # may take minutes: it was started ahead
    if not length:
        os._exit(0)  # nobody needed this container
    with door.makefile("rb") as file:
        environment = json.loads(file.read(struct.unpack("!I", length)[0]))
    for target, descriptor in zip((1, 2), descriptors[1:]):  # noqa: B905  # Python 3.9
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.set_inheritable(1, True)
    os.set_inheritable(2, True)
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)  # the child is a new program, to which this does not apply
    pid = os.fork()
    if pid == 0:
        door.close()
        os.setsid()
        if descriptors[0] != 3:
            os.dup2(descriptors[0], 3)
            os.close(descriptors[0])
        os.set_inheritable(3, True)
        fill_home(HOMES, CODE, "/root")
        command = [sys.executable, "-I", "-S", "-X", "faulthandler", "-c", boot, *sys.argv[1:]]
        os.execve(sys.executable, command, environment)
    os.close(descriptors[0])
    for descriptor in (1, 2):
        os.close(descriptor)
    _bury(pid, door)


def _bury(runner: int, door: socket.socket) -> None:
    read, write = os.pipe()
    for descriptor in (read, write):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    poll = select.poll()
    poll.register(door, select.POLLIN)
    poll.register(read, select.POLLIN)
    while True:
        ended = -1
        while ended != 0:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                os._exit(1)
            if ended == runner:
                door.sendall(struct.pack("!i", status))
                os._exit(0)
        for descriptor, _ in poll.poll():
            if descriptor == read:
                os.read(read, 4096)
            else:
                os._exit(1)  # the agent never says anything more: this is its end


def fill_home(homes: str, code: str, home: str) -> None:
    """`home` is memory: what the image's layers have there, and on top of it the bundle, which stays where it is."""
    for layer in sorted(os.listdir(homes), key=int) if os.path.isdir(homes) else ():
        _lay_on(os.path.join(homes, layer), home)
    for name in os.listdir(code) if os.path.isdir(code) else ():
        target = os.path.join(home, name)
        if not os.path.lexists(target):
            os.symlink(os.path.join(code, name), target)


def _lay_on(layer: str, target: str) -> None:
    """With the marks of overlayfs. What this user may not read stays out of its home, which its log says."""
    try:
        entries = sorted(os.scandir(layer), key=lambda entry: entry.name)
    except OSError as error:
        _left_out(error)
        return
    for entry in entries:
        try:
            _lay(entry, os.path.join(target, entry.name))
        except OSError as error:
            _left_out(error)


def _lay(entry: "os.DirEntry[str]", target: str) -> None:
    import shutil

    is_folder = entry.is_dir(follow_symlinks=False)
    if not is_folder or _hides(entry.path) or os.path.islink(target) or not os.path.isdir(target):
        if os.path.isdir(target) and not os.path.islink(target):
            shutil.rmtree(target)
        elif os.path.lexists(target):
            os.unlink(target)
    if is_folder:
        os.makedirs(target, exist_ok=True)
        _lay_on(entry.path, target)
    elif not stat.S_ISCHR(entry.stat(follow_symlinks=False).st_mode):  # else it is gone from here on
        shutil.copy2(entry.path, target, follow_symlinks=False)


def _hides(folder: str) -> bool:
    try:
        return os.getxattr(folder, "user.overlay.opaque") == b"y"
    except OSError:
        return False


def _left_out(error: OSError) -> None:
    sys.stderr.write(f"squall: not in the container's /root: {error}\n")
