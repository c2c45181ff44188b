"""Devices: which GPUs of one node a container gets, or what the node lacks. Owns no state, does no I/O.

A container gets whole devices of one type. A type that nobody named is never given away, unless the request allows an
upgrade.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from squall.spec import GpuRequest
from squall_scheduler.state import Gpu, Node

SAME: Mapping[str, tuple[str, ...]] = {
    "a100": ("a100", "a100-40gb"),
    "a10": ("a10", "a10g"),
    "a10g": ("a10g", "a10"),
    "b200+": ("b200", "b300"),
}
"""Types of devices that are what a request names; otherwise the type itself."""
UPGRADES: Mapping[str, tuple[str, ...]] = {
    "a100": ("a100-80gb",),
    "a100-40gb": ("a100-80gb",),
    "h100": ("h200",),
}
"""Better types that also satisfy a request that is not exact, the nearest first."""
ANY = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What one node gives for one choice."""

    gpus: tuple[str, ...] = ()
    upgrades: int = 0
    """How far the devices are from what was asked for."""
    refusal: str = ""
    """What the node lacks; empty = these are the devices."""


def choose(node: Node, choice: GpuRequest) -> Chosen:
    """The first free devices of one type: exactly what was asked for, else the nearest upgrade that is allowed."""
    types = acceptable(node, choice)
    for upgrades, kind in enumerate(types):
        free = sorted(gpu.uuid for gpu in _of(node, kind) if not gpu.trouble and gpu.uuid not in node.used.gpus)
        if len(free) >= choice.count:
            return Chosen(gpus=tuple(free[: choice.count]), upgrades=upgrades)
    return Chosen(refusal=_lacking(node, choice, types))


def acceptable(node: Node, choice: GpuRequest) -> Sequence[str]:
    """Types that satisfy the choice, in lower case, the best first."""
    asked = choice.type.lower()
    if asked == ANY:
        return list(dict.fromkeys(gpu.type.lower() for gpu in node.gpus))
    same = SAME.get(asked, (asked,))
    return same if choice.exact else (*same, *UPGRADES.get(asked, ()))


def _of(node: Node, kind: str) -> list[Gpu]:
    return [gpu for gpu in node.gpus if gpu.type.lower() == kind]


def _lacking(node: Node, choice: GpuRequest, types: Sequence[str]) -> str:
    """Lasting reasons first: what is full is worth waiting for."""
    if not node.gpus:
        return "has no GPU"
    per_type = [_of(node, kind) for kind in types]
    present = max(per_type, key=len, default=[])
    if not present:
        return f"has no {choice.type} (but {_inventory(node.gpus)})"
    if len(present) < choice.count:
        return f"has only {_number(len(present), choice.type)}, {choice.count} are needed"
    usable = max(([gpu for gpu in gpus if not gpu.trouble] for gpus in per_type), key=len)
    if len(usable) < choice.count:
        broken = next(gpu for gpus in per_type for gpu in gpus if gpu.trouble)
        return f"can give {len(usable)} of {_number(len(present), choice.type)}: {broken.uuid} {broken.trouble}"
    free = max(sum(gpu.uuid not in node.used.gpus for gpu in gpus if not gpu.trouble) for gpus in per_type)
    return f"is full (needs {_number(choice.count, choice.type)}, {free} free)"


def _inventory(gpus: Sequence[Gpu]) -> str:
    counts = Counter(gpu.type for gpu in gpus)
    return ", ".join(_number(count, kind) for kind, count in sorted(counts.items()))


def _number(count: int, kind: str) -> str:
    return f"{count} GPUs" if kind.lower() == ANY else f"{count} {kind}"
