"""Machines and containers: facts that agents publish, and the claims by which containers come to exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from squall_contracts.calls import SpanVector
from squall_contracts.envelope import HotMessage, Message

NODES, CONTAINERS = "nodes", "containers"
NODE_TTL_S = 10.0


@dataclass(frozen=True)
class GpuFact(Message):
    """One device."""

    TYPE: ClassVar[str] = "gpu_fact"

    uuid: str
    type: str
    """As `gpu=` names it: "H100"."""
    memory_mib: int
    simulated: bool = False
    name: str = ""
    """As the driver names it: "NVIDIA H100 80GB HBM3"."""
    memory_used_mib: int = 0
    mig: bool = False
    """It is divided into instances."""
    processes: int = 0
    """Programs that compute on it, containers' and others'."""
    trouble: str = ""
    """Why no container gets it; empty = it can be assigned."""


@dataclass(frozen=True)
class NodeFact(Message):
    """What a machine has. Bucket `nodes`, key = node id, renewed every 3 s, gone after 10 s; owner: its agent."""

    TYPE: ClassVar[str] = "node_fact"

    node: str
    region: str
    at: float
    cpu: float
    """Cores that containers may request in total."""
    memory_mib: int
    cpu_used: float = 0.0
    """Sum of the requests of present containers."""
    memory_used_mib: int = 0
    gpus: tuple[GpuFact, ...] = ()
    gpus_used: tuple[str, ...] = ()
    """uuids."""
    backends: tuple[str, ...] = ("process",)
    images: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    """Function ids that have a template here."""
    max_containers: int = 256
    containers: int = 0
    draining: bool = False
    zone: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    started_at: float = 0.0
    gpu_note: str = ""
    """Where the devices are read, or why there are none: "driver 580.95.05", "no NVIDIA driver", "simulated"."""
    preemptible: bool = False
    """Whoever owns the machine may take it away at short notice."""
    leaving_at: float = 0.0
    """When it will be taken away, as far as is known; 0 = no notice was given."""
    web: str = ""
    """Where its agent takes web requests from gateways: `unix:/path` or `tcp://host:port`; empty = nowhere."""
    web_key: str = ""
    """What a gateway has to say there. Only gateways and the platform's own services read this bucket."""
    backend_notes: tuple[str, ...] = ()
    """What was found about its backend that an operator should know, such as "containers are plain processes"."""
    no_disks: str = ""
    """Why its containers cannot have an `ephemeral_disk` of more than 512 MiB; empty = they can."""
    no_buckets: str = ""
    """Why its containers cannot have buckets mounted; empty = they can."""
    no_gpus: str = ""
    """Why its containers cannot have GPUs, though the machine may; empty = they can."""


class ClaimState:
    """States of a claim, in their order. `refused` and `failed` free the ordinal once the scheduler has seen them."""

    PROPOSED = "proposed"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    """Asked to stop (scheduler) or stopping (agent): no new inputs."""
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True)
class ContainerClaim(Message):
    """The right of one container to exist. Bucket `containers`, key `<pool>.<ordinal>`: create-only, so two schedulers
    cannot place one container twice. The scheduler creates it (proposed) and asks for a drain; the agent moves it on,
    and deletes it when the container is gone."""

    TYPE: ClassVar[str] = "container_claim"

    pool: str
    ordinal: int
    container: str
    node: str
    function_id: str
    app_id: str
    workspace: str
    state: str
    created_at: float
    updated_at: float
    reason: str = ""
    """Why refused or failed, in words for the user."""
    decision: str = ""
    """Id of the autoscaler's decision behind it."""
    gpus: tuple[str, ...] = ()
    cpu: float = 0.0
    memory_mib: int = 0
    how: str = ""
    cold_call: str = ""
    """The call that waited for this container, for the trace link; empty when started ahead of need."""
    spans: SpanVector = field(default_factory=list)
    """Control-plane and start phases so far."""
    error: Mapping[str, Any] = field(default_factory=dict)
    """state failed: see `squall.http_api.protocol.ResultMeta.error`."""
    user_error: bool = False
    """state failed: the user's import or @enter raised."""
    image_lost: bool = False
    """state failed: its image was built, and is to be had nowhere any more; the scheduler has it built again."""
    killed: bool = False
    """state failed: something that is not its agent killed it while it started."""
    killed_before: int = 0
    """Starts of the pool that were so killed in a row before this one."""


def claim_key(pool: str, ordinal: int) -> str:
    """Key of a claim."""
    return f"{pool}.{ordinal}"


@dataclass(frozen=True)
class ContainerStats(HotMessage):
    """What the containers of one node are doing. Core subject `stats.r.<node>`, once a second and on change.

    `containers` rows: [container, pool, running inputs, input slots, idle since (unix s, 0 = busy), state]."""

    TYPE: ClassVar[str] = "container_stats"

    node: str
    at: float
    containers: list[list[Any]]
    prefetched: dict[str, int] = field(default_factory=dict)
    """Inputs leased by the agent but not running, by pool."""
    finished: dict[str, int] = field(default_factory=dict)
    """Inputs that ended here since the agent started, by pool: the autoscaler's measure of throughput."""
    cpu_percent: float = 0.0
    memory_used_mib: int = 0


class Command:
    """What a node can be told."""

    DRAIN = "drain"
    """Take no new containers; end those that are there once their inputs have ended."""
    RESUME = "resume"
    """Take containers again."""
    STOP_CONTAINER = "stop_container"
    EXECUTE = "execute"
    PRUNE_IMAGES = "prune_images"
    """Remove images that nothing needs, and layers that no image needs then."""


@dataclass(frozen=True)
class NodeCommand(HotMessage):
    """Core subject `command.r.<node>`: somebody at a gateway wants something of this machine. Answered by `NodeAnswer`
    messages to `reply_to`; lost commands are given again by who wants them."""

    TYPE: ClassVar[str] = "node_command"

    command: str
    reply_to: str
    container: str = ""
    graceful: bool = False
    """Of stop_container: what runs may end; otherwise it is interrupted and starts again elsewhere."""
    words: list[str] = field(default_factory=list)
    """Of execute: the command line."""
    timeout_s: float = 0.0
    """Of execute."""
    images: list[str] = field(default_factory=list)
    """Of prune_images."""
    since: float = 0.0
    """Of prune_images: those that were asked for after it stay."""
    dry_run: bool = False
    """Of prune_images: only say what would be removed."""


@dataclass(frozen=True)
class NodeAnswer(HotMessage):
    """An answer of a node to a command: one, or for `execute` what the command printed and then its end."""

    TYPE: ClassVar[str] = "node_answer"

    node: str
    last: bool = True
    error: str = ""
    """Why it was not done; empty when it was."""
    fix: str = ""
    containers: int = 0
    """On the node, as the command found it."""
    stream: str = ""
    """stdout or stderr."""
    data: bytes = b""
    status: int | None = None
    """Of an executed command."""
    images: int = 0
    """Removed, or that would be."""
    layers: int = 0
    bytes: int = 0
    """Of those layers."""
    kept_bytes: int = 0
    """Of layers that stay."""
