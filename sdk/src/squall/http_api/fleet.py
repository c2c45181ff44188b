"""Bodies about machines and containers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuInfo:
    """One device of a machine or of a container."""

    uuid: str
    type: str = ""
    name: str = ""
    memory_mib: int = 0
    memory_used_mib: int = 0
    simulated: bool = False
    """It exists in name only."""
    mig: bool = False
    processes: int = 0
    used: bool = False
    """A container has it."""
    trouble: str = ""
    """Why no container gets it."""


@dataclass(frozen=True)
class ContainerInfo:
    """One row of GET /v1/containers."""

    container: str
    app: str
    function: str
    node: str
    state: str
    running: int
    started_at: float
    how: str = ""
    """"fork" of a template, "restore" from its memory, or "fresh" and why."""
    gpus: tuple[GpuInfo, ...] = ()


@dataclass(frozen=True)
class StopContainer:
    """POST /v1/containers/{container}/stop."""

    graceful: bool = False
    """Let what runs end first."""


@dataclass(frozen=True)
class StoppedContainer:
    """Its answer: the node has been told, and has said that it does it."""

    container: str
    node: str


@dataclass(frozen=True)
class Execute:
    """POST /v1/containers/{container}/exec."""

    command: tuple[str, ...]
    timeout_s: float = 60.0


@dataclass(frozen=True)
class DrainedNode:
    """Answer to the drain or the resume of a node."""

    node: str
    containers: int
    """That it had at that moment."""
    draining: bool


@dataclass(frozen=True)
class NodeInfo:
    """One row of GET /v1/nodes."""

    node: str
    region: str
    backends: tuple[str, ...]
    cpu: float
    cpu_used: float
    memory_mib: int
    memory_used_mib: int
    gpus: tuple[str, ...]
    """Types, one for each device."""
    containers: int
    draining: bool
    seen_at: float
    devices: tuple[GpuInfo, ...] = ()
    gpu_note: str = ""
    """Where the devices are read, or why there are none."""
    preemptible: bool = False
    leaving_at: float = 0.0
    """When it is taken away, if that is known."""
    backend_notes: tuple[str, ...] = ()
    """What an operator should know of its backend."""
