"""Volumes of an engine's containers: overlays that the agent mounts for it. Blocking: for threads.

As in sandboxes: the files of a version below, with the app's user as their owner, and above them what the container
changes. The engine shows both to the container as folders of the host.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from squall_gpu_agent.backends.bundle_view import escaped
from squall_gpu_agent.backends.docker import image
from squall_gpu_agent.backends.sandbox import kernel
from squall_gpu_agent.backends.sandbox.kernel import ATTR_IDMAP, ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY
from squall_gpu_agent.backends.sandbox.words import Overlay
from squall_gpu_agent.volumes.trees import remove

FOLDER = "volumes"
"""In a container's folder; in it one for each volume."""
PARTS = ("lower", "upper", "work", "all")
ALL = "all"
"""Where it is mounted, writable."""
# A process in a new user namespace; it has no rights over anything, and ends with its standard input.
_UNSHARE = """
import ctypes, os, sys
code = ctypes.CDLL(None, use_errno=True).unshare(0x10000000)
sys.stdout.write(str(code and ctypes.get_errno()) + "\\n")
sys.stdout.flush()
sys.stdin.read()
"""


def mount(overlays: Sequence[Overlay], user: int) -> None:
    """Mount them; what is mounted when this raises, `unmount` takes away. Raises `OSError`."""
    if not overlays:
        return
    with _user_namespace(user) as userns:
        for overlay in overlays:
            _mount(overlay, user, userns)


def unmount(folder: Path) -> None:
    """All that is in a container's folder, and what it changed."""
    for volume in (folder / FOLDER).glob("*"):
        for part in (ALL, "lower"):
            with contextlib.suppress(OSError):  # it was never mounted
                kernel.unmount(str(volume / part))
    remove(folder / FOLDER)


def check_places(overlays: Sequence[Overlay], layers: Sequence[Path]) -> None:
    """A link of the image would be followed by the engine, perhaps to where the platform looks things up."""
    for overlay in overlays:
        parts = Path(overlay.target).parts[1:]
        for count in range(1, len(parts) + 1):
            if image.is_link(layers, "/".join(parts[:count])):
                link = "/" + "/".join(parts[:count])
                raise OSError(0, f"a volume cannot be mounted at {overlay.target}: the image has a link at {link}")


def _mount(overlay: Overlay, user: int, userns: int) -> None:
    above = Path(overlay.above)
    for name in PARTS:
        (above / name).mkdir(parents=True)
    for name in ("upper", "work"):
        os.chown(above / name, user, user)
    tree = kernel.open_tree(overlay.lower)
    try:
        # Read-only before anything else: whatever goes wrong later, nobody changes a version through it.
        kernel.set_attributes(tree, ATTR_RDONLY | ATTR_NODEV | ATTR_NOSUID | ATTR_IDMAP, userns)
        kernel.attach_tree(tree, str(above / "lower"))
    finally:
        os.close(tree)
    lower, upper, work = (escaped(str(above / name)) for name in ("lower", "upper", "work"))
    options = f"lowerdir={lower},upperdir={upper},workdir={work},userxattr,volatile,index=off"
    kernel.mount("overlay", str(above / ALL), "overlay", kernel.MS_NOSUID | kernel.MS_NODEV, options)


@contextlib.contextmanager
def _user_namespace(user: int) -> Iterator[int]:
    """A descriptor of one whose root is `user` outside, for mounts with mapped ids. The agent cannot make one itself:
    it has threads."""
    command = [sys.executable, "-I", "-S", "-c", _UNSHARE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}) as child:
        try:
            assert child.stdout is not None
            if code := int(child.stdout.readline() or -1):
                raise OSError(0, f"no user namespace for the volumes: {os.strerror(code)}")
            for kind in ("uid_map", "gid_map"):
                Path(f"/proc/{child.pid}/{kind}").write_text(f"0 {user} 1")
            descriptor = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            child.kill()
    try:
        yield descriptor
    finally:
        os.close(descriptor)
