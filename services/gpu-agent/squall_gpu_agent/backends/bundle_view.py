"""Shows a bundle's files at the absolute paths that user code expects, in a private mount namespace.

Owns the decision whether a bundle needs that (`needs_view`), and the mounts. `enter` runs in a forked child
of the warden, before the interpreter is started; nothing outside the child's namespace changes, and nothing
is written outside the container's own folder.

`/root` shows the bundle's `root` and nothing else of the host's, except what would otherwise break: the
interpreter, the environment, the agent's folders. Every other folder shows the host's entries plus the
bundle's. Writes below the bundle's folders go to the container's folder.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import shutil
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
IMPORTABLE = (".py", ".pyi", ".so", ".pyc", "py.typed")
REPLACED = "root"
"""The one top-level folder that does not show the host's entries: they would be importable."""


class View(NamedTuple):
    """What `enter` needs; travels as JSON."""

    code_dir: str
    work: str
    """An empty folder of the container's, for the mounts' writable layers."""
    keep: Sequence[str]
    """Host paths that must stay visible below `/root`."""


class ViewError(Exception):
    """The machine does not allow the mounts; the message says what to do."""


def needs_view(code_dir: str) -> str | None:
    """A file of the bundle that is only found at its absolute path, or None: then no namespace is needed."""
    if not os.path.isdir(code_dir):
        raise FileNotFoundError(errno.ENOENT, "the extracted bundle is not there", code_dir)
    for folder, _, files in os.walk(code_dir):
        below = os.path.relpath(folder, code_dir)
        if below.split(os.sep)[-1] == "__pycache__":
            continue
        importable = below == REPLACED or below.startswith(REPLACED + os.sep)
        for name in files:
            if not importable or not name.endswith(IMPORTABLE):
                return os.path.normpath(os.path.join("/", below, name))
    return None


def enter(view: View) -> None:
    """Give the calling process (single-threaded) the namespace and the mounts. Raises `ViewError`."""
    try:
        _Mounts(view).make()
    except OSError as error:
        raise ViewError(
            f"this bundle has files at absolute paths, and showing them there failed: {error}. "
            "It needs mount namespaces: run the agent as root with CAP_SYS_ADMIN, or allow unprivileged user "
            "namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, "
            "user.max_user_namespaces above 0)"
        ) from error


class _Mounts:
    def __init__(self, view: View) -> None:
        self._view = view
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._layers = 0
        self._user_namespace = False
        self._memory = ""

    def make(self) -> None:
        self._unshare()
        self._mount("none", "/", None, MS_REC | MS_PRIVATE)
        code = self._view.code_dir
        missing = [name for name in sorted(os.listdir(code)) if not os.path.isdir("/" + name)]
        for name in sorted(os.listdir(code)):
            if name in missing:
                continue
            stage = self._folder("stage")
            if name == REPLACED:
                self._overlay(os.path.join(code, name), stage)
                self._show_kept("/" + name, stage)
            else:
                self._merge(os.path.join(code, name), "/" + name, stage)
            self._mount(stage, "/" + name, None, MS_BIND | MS_REC)
        if missing:
            self._new_root(missing)

    def _unshare(self) -> None:
        if self._libc.unshare(CLONE_NEWNS) == 0:
            return
        uid, gid = os.geteuid(), os.getegid()
        self._check(self._libc.unshare(CLONE_NEWNS | CLONE_NEWUSER), "unshare")
        self._user_namespace = True
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)

    def _merge(self, code: str, host: str, stage: str) -> None:
        """`stage` = the bundle's folder, plus what the host has in its own."""
        self._overlay(code, stage)
        shutil.copymode(host, stage)
        ours = set(os.listdir(code))
        for name in os.listdir(host):
            source, target = os.path.join(host, name), os.path.join(stage, name)
            if name not in ours:
                self._show(source, target)
            elif os.path.isdir(source) and os.path.isdir(target):
                self._merge(os.path.join(code, name), source, target)

    def _show(self, source: str, target: str) -> None:
        mode = os.lstat(source).st_mode
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(source), target)
            return
        if stat.S_ISDIR(mode):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        self._mount(source, target, None, MS_BIND | MS_REC)

    def _show_kept(self, host: str, stage: str) -> None:
        for path in _outermost(self._view.keep):
            if path.startswith(host + "/") and os.path.isdir(path):
                target = stage + path[len(host) :]
                os.makedirs(target, exist_ok=True)
                self._mount(path, target, None, MS_BIND | MS_REC)

    def _new_root(self, missing: list[str]) -> None:
        """A root folder that has the bundle's top-level names too: the host's cannot be added to."""
        root = self._folder("root")
        self._mount("tmpfs", root, "tmpfs", 0, "mode=755")
        for name in os.listdir("/"):
            self._show("/" + name, os.path.join(root, name))
        for name in missing:
            source, target = os.path.join(self._view.code_dir, name), os.path.join(root, name)
            if os.path.isdir(source):
                os.mkdir(target)
                self._overlay(source, target)
            else:
                shutil.copy(source, target)
        os.chdir(root)
        number = PIVOT_ROOT.get(platform.machine())
        if number is None:
            raise OSError(errno.ENOSYS, f"pivot_root on {platform.machine()}")
        self._check(self._libc.syscall(number, b".", b"."), "pivot_root")
        self._check(self._libc.umount2(b".", MNT_DETACH), "umount of the old root")
        os.chdir("/")

    def _overlay(self, lower: str, target: str) -> None:
        try:
            self._overlay_on(self._view.work, lower, target)
        except OSError:
            # The agent's folder may lie on a file system that cannot carry a writable layer (overlay in a
            # container).
            if not self._memory:
                self._memory = self._folder("memory")
                self._mount("tmpfs", self._memory, "tmpfs", 0, "mode=755")
            self._overlay_on(self._memory, lower, target)

    def _overlay_on(self, base: str, lower: str, target: str) -> None:
        self._layers += 1
        upper, work = (os.path.join(base, f"{kind}-{self._layers}") for kind in ("upper", "work"))
        os.mkdir(upper, 0o755)
        os.mkdir(work)
        options = f"lowerdir={_escaped(lower)},upperdir={_escaped(upper)},workdir={_escaped(work)}"
        if self._user_namespace:
            options += ",userxattr"
        self._mount("overlay", target, "overlay", 0, options)

    def _folder(self, kind: str) -> str:
        self._layers += 1
        path = os.path.join(self._view.work, f"{kind}-{self._layers}")
        os.mkdir(path, 0o755)
        return path

    def _mount(self, source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
        def c(text: str | None) -> bytes | None:
            return None if text is None else os.fsencode(text)

        done = self._libc.mount(c(source), c(target), c(kind), ctypes.c_ulong(flags), c(options))
        self._check(done, f"mount of {kind or source} on {target}")

    def _check(self, result: int, what: str) -> None:
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{what}: {os.strerror(code)}")


def _escaped(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _outermost(paths: Sequence[str]) -> Iterator[str]:
    shown: list[str] = []
    for path in sorted(set(map(os.path.normpath, paths))):
        if not any(path == other or path.startswith(other + "/") for other in shown):
            shown.append(path)
            yield path
