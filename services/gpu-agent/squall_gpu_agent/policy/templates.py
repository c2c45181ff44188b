"""Templates: may containers be forked from this one, and which containers may share one. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from squall.spec import FunctionSpec, digest

NAMES_SHOWN = 3
DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/")


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateReport:
    """What an initialised template says about itself."""

    threads: tuple[str, ...]
    """A name per thread, the main one included."""
    descriptors: tuple[str, ...]
    """What is open besides its own: link targets of /proc/self/fd ("socket:[123]", "/dev/nvidia0")."""
    children: int
    """Processes that the imports started and that still run."""
    shared_memory: tuple[str, ...] = ()
    """Mappings that one process writes and all its forks see: files, devices, "/dev/zero (deleted)"."""


@dataclass(frozen=True, slots=True)
class Fork:
    """Containers may be forked from it."""


@dataclass(frozen=True, slots=True)
class StartPlainly:
    """Each container imports for itself."""

    reason: str


def judge(report: TemplateReport, *, snapshot: bool = False) -> Fork | StartPlainly:
    """Whether a fork of this template behaves like a fresh process.

    Measured (reference/runtime.md, 2b): with a second thread the child hangs in torch, autograd or an
    executor, and a lock held by it stays locked for ever. A socket would be one connection read by all
    containers. Shared memory (a lock of `multiprocessing` lies there) would be written to by all of them.
    """
    what = "import or @enter(snap=True)" if snapshot else "import"
    if len(report.threads) != 1:
        others = len(report.threads) - 1
        return StartPlainly(f"{what} left {others} {_plural(others, 'thread')} running ({_some(report.threads[1:])})")
    shared = [name for name in report.descriptors if _cannot_be_shared(name)]
    if shared:
        return StartPlainly(f"{what} left open what forks cannot share ({_some(shared)})")
    written = [name for name in report.shared_memory if _belongs_to_one(name)]
    if written:
        return StartPlainly(f"{what} left memory that all forks would write to ({_some(written)})")
    if report.children:
        return StartPlainly(f"{what} left {report.children} child {_plural(report.children, 'process')} running")
    return Fork()


def wanted(spec: FunctionSpec) -> Fork | StartPlainly:
    """Whether a template is worth trying at all."""
    if not spec.use_template:
        return StartPlainly("templates are turned off for this function")
    if spec.resources.gpus and not spec.memory_snapshot:
        # Templates hold no device, and a `torch.cuda.is_available()` at the top of a module would say no for good.
        return StartPlainly(
            "code of a function with GPUs may look for them while it is imported (enable_memory_snapshot=True if not)"
        )
    return Fork()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What user code sees before the fork, besides what its declaration says of it."""

    app: str
    function: str
    image: str
    env: Mapping[str, str]
    env_version: str
    params: Mapping[str, Any] | None = None
    """Class parameters: only `@enter(snap=True)` sees them."""


def template_key(spec: FunctionSpec, seen: Seen) -> str:
    """Containers with equal keys may be forked from one template: all that user code sees before the fork is in it.

    App and function are in it although the rest may be equal: one template never serves two apps.
    """
    parts = {
        "app": seen.app,
        "function": seen.function,
        "image": seen.image,
        "bundle": spec.code.bundle_sha256,
        "module": spec.code.module,
        "qualname": spec.code.qualname,
        "env": dict(seen.env),
        "env_version": seen.env_version,
        "snapshot": dict(seen.params or {}) if spec.memory_snapshot else None,
    }
    return "tp-" + digest(parts)[:24]


def _cannot_be_shared(target: str) -> bool:
    # Event queues (anon_inode) and pipes are one object in all forks, as sockets are; CUDA does not survive a
    # fork.
    return target.startswith(("socket:", "pipe:", "anon_inode:", *DEVICES))


def _belongs_to_one(mapping: str) -> bool:
    # Not a file that stays: each fresh process would have opened that same one.
    return mapping.startswith(("/dev/", "/memfd:", "/SYSV")) or mapping.endswith("(deleted)")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"


def _plural(n: int, word: str) -> str:
    if n == 1:
        return word
    return word + ("es" if word.endswith("s") else "s")
