"""Templates: may containers be forked from this one, and which containers may share one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from squall.spec import FunctionSpec, digest

NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateReport:
    """What an initialised template says about itself."""

    threads: tuple[str, ...]
    """A name per thread, the main one included."""
    descriptors: tuple[str, ...]
    """What is open besides its own: link targets of /proc/self/fd ("socket:[123]", "/dev/nvidia0")."""
    children: int
    """Processes that the imports started and that still run."""


@dataclass(frozen=True, slots=True)
class Fork:
    """Containers may be forked from it."""


@dataclass(frozen=True, slots=True)
class StartPlainly:
    """Each container imports for itself."""

    reason: str


def judge(report: TemplateReport) -> Fork | StartPlainly:
    """Whether a fork of this template behaves like a fresh process.

    Measured (reference/runtime.md, 2b): with a second thread the child hangs in torch, autograd or an
    executor, and a lock held by it stays locked for ever. A socket would be one connection read by all
    containers.
    """
    if len(report.threads) != 1:
        others = len(report.threads) - 1
        return StartPlainly(f"import left {others} {_plural(others, 'thread')} running ({_some(report.threads[1:])})")
    shared = [name for name in report.descriptors if _cannot_be_shared(name)]
    if shared:
        return StartPlainly(f"import left open what forks cannot share ({_some(shared)})")
    if report.children:
        return StartPlainly(f"import left {report.children} child {_plural(report.children, 'process')} running")
    return Fork()


def wanted(spec: FunctionSpec) -> Fork | StartPlainly:
    """Whether a template is worth trying at all."""
    if not spec.use_template:
        return StartPlainly("templates are turned off for this function")
    if spec.resources.gpus:
        # Templates hold no device, and a `torch.cuda.is_available()` at the top of a module would say no for good.
        return StartPlainly("code of a function with GPUs may look for them while it is imported")
    return Fork()


def template_key(
    spec: FunctionSpec, *, app: str, function: str, image: str, env: dict[str, str], env_version: str
) -> str:
    """Containers with equal keys may be forked from one template: all that user code sees during import is in
    it.

    App and function are in it although the rest may be equal: one template never serves two apps.
    """
    seen = {
        "app": app,
        "function": function,
        "image": image,
        "bundle": spec.code.bundle_sha256,
        "module": spec.code.module,
        "qualname": spec.code.qualname,
        "env": dict(env),
        "env_version": env_version,
    }
    return "tp-" + digest(seen)[:24]


def _cannot_be_shared(target: str) -> bool:
    # Event queues (anon_inode) and pipes are one object in all forks, as sockets are; CUDA does not survive a
    # fork.
    return target.startswith(("socket:", "pipe:", "anon_inode:", "/dev/nvidia"))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"


def _plural(n: int, word: str) -> str:
    if n == 1:
        return word
    return word + ("es" if word.endswith("s") else "s")
