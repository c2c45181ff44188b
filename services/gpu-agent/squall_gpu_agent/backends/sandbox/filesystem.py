"""What the processes of a slot see of the disk: an overlay of the image's layers, and little else.

Two halves. `gather` runs as the host's root, in a mount namespace of its own: it takes copies of everything that comes
from the host, read-only, with ids mapped. `build` runs without any right on the host, in the slot's namespaces: it
stacks the overlay, makes it the root, and only then puts the rest in place, so that a symbolic link in an image leads
to a place in the image.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import NamedTuple

from squall_gpu_agent.backends.sandbox import kernel
from squall_gpu_agent.backends.sandbox.kernel import (
    ATTR_IDMAP,
    ATTR_NODEV,
    ATTR_NOEXEC,
    ATTR_NOSUID,
    ATTR_RDONLY,
    MS_NOATIME,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
)
from squall_gpu_agent.backends.sandbox.words import Bucket, Overlay, SlotPlan
from squall_gpu_agent.buckets import joining

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1"} | {
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
# What the kernel does not keep apart by namespaces, or tells of the machine.
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
)
NO_VOLUMES = ("/proc", "/sys", "/dev", "/run/squall")
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
WRITABLE_FOLDERS = {"upper": 0o755, "work": 0o755, "scratch": 0o700, "taken": 0o700}
_KERNELS = MS_NOSUID | MS_NODEV | MS_NOEXEC


class Gathered(NamedTuple):
    """From the host, mounted nowhere that the slot could reach yet."""

    lowers: list[str]
    """Names in the stage, bottom first."""
    trees: list[tuple[int, str, bool]]
    """Descriptor, place in the slot, whether it is a folder."""
    buckets: list[tuple[int, str]]
    """Descriptor, place in the slot."""


def make_writable(plan: SlotPlan) -> None:
    """Mount the slot's writable layer, of bounded size, at its folder. In memory it counts as the slot's."""
    if plan.device:
        # It ends with the slot: nothing has to survive a crash of the machine, and what is empty need not be zeroed.
        kernel.mount(plan.device, plan.folder, "ext4", MS_NOSUID | MS_NODEV | MS_NOATIME, "barrier=0,noinit_itable")
    else:
        options = f"mode=755,size={plan.writable_mib}m,nr_inodes={plan.writable_mib * 512}"
        kernel.mount("squall", plan.folder, "tmpfs", MS_NOSUID | MS_NODEV, options)
    for name, mode in WRITABLE_FOLDERS.items():
        path = os.path.join(plan.folder, name)
        os.mkdir(path, mode)
        if name != "taken":
            os.chown(path, plan.ids, plan.ids)


def gather(plan: SlotPlan, stage: str, userns: int) -> Gathered:
    """In a mount namespace of the calling process's own. Leaves the process in the stage."""
    kernel.mount("squall", stage, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    for name in ("root", "proc", "sys", "writable"):
        os.mkdir(os.path.join(stage, name))
    lowers = []
    for place, layer in enumerate(plan.layers):
        name = f"l{place}"
        os.mkdir(os.path.join(stage, name))
        tree = _copy(layer, ATTR_RDONLY | ATTR_NODEV | ATTR_NOSUID | ATTR_IDMAP, userns)
        kernel.attach_tree(tree, os.path.join(stage, name))
        lowers.append(name)
    kernel.attach_tree(kernel.open_tree(plan.folder), os.path.join(stage, "writable"))
    for place, overlay in enumerate(plan.overlays):
        for part, source, attributes in (
            ("lower", overlay.lower, ATTR_RDONLY | ATTR_NODEV | ATTR_NOSUID | ATTR_IDMAP),
            ("above", overlay.above, ATTR_NODEV | ATTR_NOSUID),
        ):
            name = os.path.join(stage, f"{part}{place}")
            os.mkdir(name)
            kernel.attach_tree(_copy(source, attributes, userns), name)
        os.mkdir(os.path.join(stage, f"volume{place}"))
    buckets = [
        (_bucket(bucket, os.path.join(stage, f"bucket{n}")), bucket.target) for n, bucket in enumerate(plan.buckets)
    ]
    trees = [(_copy(f"/dev/{name}", ATTR_NOSUID | ATTR_NOEXEC, 0), f"/dev/{name}", False) for name in DEVICES]
    for bind in plan.binds:
        attributes = ATTR_NOEXEC if bind.device else ATTR_NODEV
        attributes |= ATTR_NOSUID | (0 if bind.writable else ATTR_RDONLY) | (ATTR_IDMAP * bind.mapped)
        trees.append((_copy(bind.source, attributes, userns), bind.target, os.path.isdir(bind.source)))
    os.chdir(stage)  # the slot's root may not pass through the folders above it
    return Gathered(lowers, trees, buckets)


def build(plan: SlotPlan, found: Gathered) -> None:
    """In the slot's namespaces, by its first process, which is in the stage."""
    lower = ":".join(reversed(found.lowers))
    layers = f"lowerdir={lower},upperdir=writable/upper,workdir=writable/work,userxattr,volatile"
    kernel.mount("overlay", "root", "overlay", 0, layers)
    # The kernel allows these two only where the host's are in full view, so before the root changes.
    kernel.mount("proc", "proc", "proc", _KERNELS)
    kernel.mount("sysfs", "sys", "sysfs", _KERNELS | MS_RDONLY)
    kernels = [(kernel.open_tree(name), f"/{name}", True) for name in ("proc", "sys")]
    volumes = [mount_volume(place, overlay) for place, overlay in enumerate(plan.overlays)]
    kernel.pivot_root("root")
    for tree, target, is_folder in kernels:
        _put(tree, target, is_folder)
    _make_dev(plan)
    for tree, target, is_folder in found.trees:
        _put(tree, target, is_folder)
    for overlay, (seen, inner) in zip(plan.overlays, volumes, strict=True):
        _put(inner, overlay.inner, True)
        _check_place(overlay.target)
        _put(seen, overlay.target, True)
    for bucket, target in found.buckets:
        _check_place(target)
        _put(bucket, target, True)
    for path in MASKED:
        _mask(path)
    for path in READ_ONLY:
        _protect(path)
    for path, text in plan.files.items():
        _write(path, text)
    for path, text in plan.links:
        _link(path, text)


def mount_volume(place: int, overlay: Overlay) -> tuple[int, int]:
    """In the stage. What is seen at its target, and inside."""
    # With an index, as some kernels have it by default, a write to one of several equal files would be one to all:
    # they are links to one.
    above = f"above{place}"
    layers = f"lowerdir=lower{place},upperdir={above}/upper,workdir={above}/work,userxattr,volatile,index=off"
    kernel.mount("overlay", f"volume{place}", "overlay", MS_NOSUID | MS_NODEV, layers)
    seen, inner = (kernel.open_tree(f"volume{place}") for _ in range(2))
    if overlay.read_only:
        kernel.set_attributes(seen, ATTR_RDONLY)
    return seen, inner


def _bucket(bucket: Bucket, place: str) -> int:
    """It is mounted in this slot's namespaces alone, and so its server ends with the slot."""
    os.mkdir(place)
    joining.mount(bucket.server, place)
    return _copy(place, ATTR_NODEV | ATTR_NOSUID | (ATTR_RDONLY if bucket.read_only else 0), 0)


def _copy(path: str, attributes: int, userns: int) -> int:
    tree = kernel.open_tree(path)
    kernel.set_attributes(tree, attributes, userns)
    return tree


def _put(tree: int, target: str, is_folder: bool) -> None:
    os.makedirs(target if is_folder else os.path.dirname(target), exist_ok=True)
    if not is_folder and not os.path.lexists(target):
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    kernel.attach_tree(tree, target)
    os.close(tree)


def _check_place(target: str) -> None:
    """A link of the image must not lead a volume to where the platform looks things up."""
    place = os.path.realpath(target)
    if any(f"{place}/".startswith(f"{own}/") or f"{own}/".startswith(f"{place.rstrip('/')}/") for own in NO_VOLUMES):
        raise OSError(0, f"a volume cannot be mounted at {target}: the image has a link there, to {place}")


def _make_dev(plan: SlotPlan) -> None:
    os.makedirs("/dev", exist_ok=True)
    kernel.mount("squall", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=64k")
    for name in ("pts", "shm"):
        os.mkdir(f"/dev/{name}")
    pts = "newinstance,ptmxmode=0666,mode=0620"
    kernel.mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, pts)
    shared = f"mode=1777,size={plan.shared_memory_mib}m"
    kernel.mount("shm", "/dev/shm", "tmpfs", _KERNELS, shared)
    for name, target in DEVICE_LINKS.items():
        os.symlink(target, f"/dev/{name}")


def _mask(path: str) -> None:
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return  # this kernel has none
    if is_folder:
        kernel.mount("squall", path, "tmpfs", _KERNELS | MS_RDONLY, "size=0,mode=755")
    else:
        kernel.attach_tree(kernel.open_tree("/dev/null"), path)


def _protect(path: str) -> None:
    if os.path.exists(path):
        tree = kernel.open_tree(path)
        kernel.set_attributes(tree, ATTR_RDONLY)
        kernel.attach_tree(tree, path)
        os.close(tree)


def _link(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.symlink(text, path)


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # a link of the image's, perhaps to nowhere
    with open(path, "w") as file:
        file.write(text)
