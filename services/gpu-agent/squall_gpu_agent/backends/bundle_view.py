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

from squall_gpu_agent.buckets import joining

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE, MS_REMOUNT, MS_RDONLY = 4096, 16384, 1 << 18, 32, 1
MNT_DETACH = 2
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
IMPORTABLE = (".py", ".pyi", ".so", ".pyc", "py.typed")
REPLACED = "root"
"""The one top-level folder that does not show the host's entries: they would be importable."""


class VolumeView(NamedTuple):
    """A volume to mount."""

    lower: str
    """Its files; never written to."""
    folder: str
    """With `upper` and `work` for what is changed, and `all`, where it is mounted besides, writable."""
    target: str
    read_only: bool


class BucketView(NamedTuple):
    """A bucket to mount."""

    server: str
    """Socket of the process that serves it."""
    folder: str
    """An empty folder of the container's, where it is mounted besides."""
    target: str
    read_only: bool


class View(NamedTuple):
    """What `enter` needs; travels as JSON."""

    code_dir: str
    work: str
    """An empty folder of the container's, for the mounts' writable layers."""
    keep: Sequence[str]
    """Host paths that must stay visible below `/root`."""
    points: str = ""
    """A folder with an empty folder for each mount point."""
    volumes: Sequence[VolumeView] = ()
    buckets: Sequence[BucketView] = ()


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


def names_root(code_dir: str) -> str | None:
    """A Python file of the bundle that says "/root" somewhere, or None. It may mean files that are attached there.

    Only a sign: without a view it still runs wherever it does not."""
    for folder, _, files in os.walk(code_dir):
        for name in files:
            path = os.path.join(folder, name)
            if name.endswith(".py"):
                with open(path, "rb") as file:
                    if b"/root" in file.read():
                        return os.path.join("/", os.path.relpath(path, code_dir))
    return None


def enter(view: View) -> None:
    """Give the calling process (single-threaded) the namespace and the mounts. Raises `ViewError`."""
    try:
        _Mounts(view).make()
    except OSError as error:
        what = (
            "its volumes could not be mounted"
            if view.volumes or view.buckets
            else ("this bundle has files at absolute paths, and showing them there failed")
        )
        raise ViewError(
            f"{what}: {error}. "
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
        volumes = [VolumeView(*volume) for volume in self._view.volumes]
        for volume in volumes:
            self._volume(volume)
        buckets = [BucketView(*bucket) for bucket in self._view.buckets]
        for bucket in buckets:
            joining.mount(bucket.server, bucket.folder)
        sources = [source for source in (self._view.points, self._view.code_dir) if source]
        names = _names(sources)
        missing = [name for name in names if not os.path.isdir("/" + name)]
        for name in names:
            if name in missing:
                continue
            stage = self._folder("stage")
            if name == REPLACED:
                self._overlay(_inside(sources, name), stage)
                self._show_kept("/" + name, stage)
            else:
                self._merge(_inside(sources, name), "/" + name, stage)
            self._mount(stage, "/" + name, None, MS_BIND | MS_REC)
        if missing:
            self._new_root(missing, sources)
        for volume in volumes:
            self._show_volume(os.path.join(volume.folder, "all"), volume.target, volume.read_only)
        for bucket in buckets:
            self._show_volume(bucket.folder, bucket.target, bucket.read_only)

    def _volume(self, volume: VolumeView) -> None:
        """Mount it beside; it is shown at its place when that is there."""
        options = f"lowerdir={escaped(volume.lower)},upperdir={escaped(volume.folder)}/upper"
        options += f",workdir={escaped(volume.folder)}/work,userxattr,index=off"  # equal files are links to one
        self._mount("overlay", os.path.join(volume.folder, "all"), "overlay", 0, options)

    def _show_volume(self, place: str, target: str, read_only: bool) -> None:
        self._mount(place, target, None, MS_BIND)
        if read_only:
            self._mount("none", target, None, MS_BIND | MS_REMOUNT | MS_RDONLY)

    def _unshare(self) -> None:
        if self._libc.unshare(CLONE_NEWNS) == 0:
            return
        uid, gid = os.geteuid(), os.getegid()
        self._check(self._libc.unshare(CLONE_NEWNS | CLONE_NEWUSER), "unshare")
        self._user_namespace = True
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)

    def _merge(self, code: Sequence[str], host: str, stage: str) -> None:
        """`stage` = the bundle's folders, plus what the host has in its own."""
        self._overlay(code, stage)
        shutil.copymode(host, stage)
        ours = set(_names(code))
        for name in os.listdir(host):
            source, target = os.path.join(host, name), os.path.join(stage, name)
            if name not in ours:
                self._show(source, target)
            elif os.path.isdir(source) and os.path.isdir(target):
                self._merge(_inside(code, name), source, target)

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

    def _new_root(self, missing: list[str], sources: list[str]) -> None:
        """A root folder that has the bundle's top-level names too: the host's cannot be added to."""
        root = self._folder("root")
        self._mount("tmpfs", root, "tmpfs", 0, "mode=755")
        for name in os.listdir("/"):
            self._show("/" + name, os.path.join(root, name))
        for name in missing:
            target = os.path.join(root, name)
            if folders := _inside(sources, name):
                os.mkdir(target)
                self._overlay(folders, target)
            else:
                shutil.copy(os.path.join(self._view.code_dir, name), target)
        os.chdir(root)
        number = PIVOT_ROOT.get(platform.machine())
        if number is None:
            raise OSError(errno.ENOSYS, f"pivot_root on {platform.machine()}")
        self._check(self._libc.syscall(number, b".", b"."), "pivot_root")
        self._check(self._libc.umount2(b".", MNT_DETACH), "umount of the old root")
        os.chdir("/")

    def _overlay(self, lowers: Sequence[str], target: str) -> None:
        lower = ":".join(map(escaped, lowers))
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
        options = f"lowerdir={lower},upperdir={escaped(upper)},workdir={escaped(work)}"
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


def _names(folders: Sequence[str]) -> list[str]:
    return sorted({name for folder in folders for name in os.listdir(folder)})


def _inside(folders: Sequence[str], name: str) -> list[str]:
    """The folders of that name in them."""
    return [path for path in (os.path.join(folder, name) for folder in folders) if os.path.isdir(path)]


def escaped(path: str) -> str:
    """A path as an option of overlayfs."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _outermost(paths: Sequence[str]) -> Iterator[str]:
    shown: list[str] = []
    for path in sorted(set(map(os.path.normpath, paths))):
        if not any(path == other or path.startswith(other + "/") for other in shown):
            shown.append(path)
            yield path
