"""Acceptance: whether this machine takes a container that the scheduler proposes. Pure.

The scheduler decides on a picture of the fleet that may be seconds old; the agent's word is final, and its reason goes
back to the scheduler and to the user who waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ISOLATION_ORDER = ("process", "sandbox", "gvisor")
"""From weakest to strongest; a function demands at least one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a proposed container needs."""

    cpu: float
    memory_mib: int
    gpus: tuple[str, ...]
    """uuids of the devices that the scheduler chose."""
    gpus_required: bool
    isolation: str
    python_version: str
    disk_mib: int = 0
    """On disk, not in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What this machine has and what is taken."""

    cpu: float
    memory_mib: int
    max_containers: int
    cpu_used: float
    memory_used_mib: int
    containers: int
    gpus: frozenset[str]
    gpus_used: frozenset[str]
    gpu_troubles: Mapping[str, str]
    """Why some of them cannot be assigned."""
    isolation: str
    """The strongest that its backend offers."""
    python_versions: tuple[str, ...]
    draining: bool
    no_disks: str = ""
    """Why its containers have no disk on disk; empty: they have."""
    no_gpus: str = ""
    """Why its containers cannot have GPUs; empty: they can."""


@dataclass(frozen=True, slots=True)
class Accept:
    """The container may start here."""

    reason: str = "there is room"


@dataclass(frozen=True, slots=True)
class Refuse:
    """It may not, and why."""

    reason: str


def decide(wanted: Wanted, machine: Machine) -> Accept | Refuse:
    """Accept or refuse; the first reason that applies, most lasting first."""
    for reason in (_ability(wanted, machine), _devices(wanted, machine), _room(wanted, machine)):
        if reason:
            return Refuse(reason)
    return Accept()


def _ability(wanted: Wanted, machine: Machine) -> str:
    if machine.draining:
        return "the node is draining"
    if wanted.isolation not in ISOLATION_ORDER:
        return f"isolation {wanted.isolation!r} is not known here"
    if ISOLATION_ORDER.index(wanted.isolation) > ISOLATION_ORDER.index(machine.isolation):
        return f"needs isolation {wanted.isolation!r}, the node offers {machine.isolation!r}"
    if wanted.disk_mib and machine.no_disks:
        return f"needs ephemeral_disk={wanted.disk_mib}; {machine.no_disks}"
    if (wanted.gpus_required or wanted.gpus) and machine.no_gpus:
        return f"needs a GPU; {machine.no_gpus}"
    asked = wanted.python_version
    if machine.python_versions and asked and asked not in machine.python_versions:
        return f"needs Python {wanted.python_version}, the node has {', '.join(machine.python_versions)}"
    return ""


def _devices(wanted: Wanted, machine: Machine) -> str:
    if wanted.gpus_required and not wanted.gpus:
        return "needs a GPU, none was chosen for it"
    if unknown := set(wanted.gpus) - machine.gpus:
        return f"the node has no GPU {', '.join(sorted(unknown))}"
    if taken := set(wanted.gpus) & machine.gpus_used:
        return f"GPU {', '.join(sorted(taken))} is taken"
    for uuid in sorted(set(wanted.gpus) & machine.gpu_troubles.keys()):
        return f"GPU {uuid} {machine.gpu_troubles[uuid]}"
    return ""


def _room(wanted: Wanted, machine: Machine) -> str:
    if machine.containers >= machine.max_containers:
        return f"has {machine.containers} containers, the most allowed"
    # Sums of fractions of cores: without the tolerance 8 x 0.1 + 0.2 does not fit into 1.
    if wanted.cpu > machine.cpu - machine.cpu_used + 1e-6:
        return f"needs {wanted.cpu:g} cores, {max(0.0, machine.cpu - machine.cpu_used):g} free"
    if wanted.memory_mib > machine.memory_mib - machine.memory_used_mib:
        return f"needs {wanted.memory_mib} MiB, {max(0, machine.memory_mib - machine.memory_used_mib)} MiB free"
    return ""
