"""What a function or class declares, frozen: code, image, resources, scaling, retries, mounts, schedule, web.

Owns the field names, units and defaults. Which values are consistent, says `spec_checks`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from squall.errors import InvalidError
from squall.image_spec import ImageSpec

DISK_IN_MEMORY_MIB = 512
"""A container's own disk up to this size is kept in memory, and counts as such."""
MIN_DISK_MIB, MAX_DISK_MIB = 16, 3 * 1024 * 1024
"""Of `ephemeral_disk`. Of less nearly nothing can be used: a disk with 4 MiB left counts as full."""
DEFAULT_TIMEOUT_S = 300.0
DEFAULT_SCALEDOWN_WINDOW_S = 60.0
DEFAULT_QUEUE_LIMIT_S = 24 * 3600.0
"""How long a call may wait in the queue before it ends `expired`."""
MAX_WEBHOOK_CHARACTERS = 2048


@dataclass(frozen=True)
class GpuRequest:
    """One acceptable GPU choice; a function lists them in order of preference."""

    type: str
    count: int = 1
    exact: bool = False
    """`H100!`: no upgrade to a better type."""


@dataclass(frozen=True)
class Resources:
    """What one container asks for."""

    cpu: float = 0.125
    """Cores requested."""
    cpu_limit: Optional[float] = None
    memory_mib: int = 128
    memory_limit_mib: Optional[int] = None
    """The container is killed above it; None = no limit."""
    gpus: tuple[GpuRequest, ...] = ()
    ephemeral_disk_mib: Optional[int] = None
    """What its container may write, where the backend has a limit for that; None = `DISK_IN_MEMORY_MIB`."""


@dataclass(frozen=True)
class RetryPolicy:
    """When a failed attempt is repeated. Delay before retry n is initial x coefficient^(n-1), at most max_delay_s."""

    max_retries: int = 0
    backoff_coefficient: float = 1.0
    initial_delay_s: float = 1.0
    max_delay_s: float = 60.0


@dataclass(frozen=True)
class ScalingPolicy:
    """How many containers a pool may have, and how many inputs one takes at once."""

    min_containers: int = 0
    max_containers: Optional[int] = None
    buffer_containers: int = 0
    scaledown_window_s: float = DEFAULT_SCALEDOWN_WINDOW_S
    max_inputs: int = 1
    """Inputs one container runs at the same time."""
    target_inputs: int = 1
    """Load per container that the autoscaler aims at; at most max_inputs."""


@dataclass(frozen=True)
class BatchPolicy:
    """How inputs of a function are collected: its code is called once for all of a batch, with lists."""

    max_batch_size: int
    wait_ms: int
    """How long the first input of a batch waits for others."""


@dataclass(frozen=True)
class WebSpec:
    """How a function answers web requests."""

    kind: str
    """"fastapi": it is one route; "asgi", "wsgi": it makes an app; "server": it starts a server on `port`."""
    method: str = "GET"
    """Of kind fastapi."""
    docs: bool = False
    """Of kind fastapi: whether there is `/docs`."""
    label: str = ""
    """What its address is called in place of `app-function`."""
    custom_domains: tuple[str, ...] = ()
    requires_proxy_auth: bool = False
    """Requests need a proxy token."""
    port: int = 0
    """Of kind server."""
    startup_timeout_s: float = 5.0
    """Of kind server: how long it may take to listen."""
    stateless: bool = False
    """Of `@app.server`: no request is kept waiting. 503 while no container is ready, 429 while all are full."""
    websocket_grace_s: float = 0.0
    """How long a WebSocket may go on after its container is to end, or another version took its place."""


@dataclass(frozen=True)
class MethodSpec:
    """One callable of a function or class. A plain function has exactly one, named ""."""

    name: str = ""
    is_generator: bool = False
    is_async: bool = False
    web: Optional[WebSpec] = None
    """It answers web requests, and cannot be called otherwise."""


@dataclass(frozen=True)
class ParameterSpec:
    """One `squall.parameter()` of a class."""

    name: str
    type: str
    """"str", "int", "bool" or "bytes"."""
    has_default: bool = False
    default: Any = None
    """Of the type bytes: {"b64": text}."""


@dataclass(frozen=True)
class CodeRef:
    """The user's code and added local files: a zip whose paths are those in the container, without the first slash."""

    bundle_sha256: str
    module: str
    """Import name of the module that holds the function."""
    qualname: str
    """Name of the function or class in that module."""
    bundle_bytes: int = 0


@dataclass(frozen=True)
class SecretRef:
    """A secret that a function declares: by name and environment, or by id if it has no name. Never its values."""

    name: str = ""
    environment: str = "main"
    id: str = ""
    required: tuple[str, ...] = ()
    """Keys that it must have."""


@dataclass(frozen=True)
class VolumeMount:
    """A volume that a function's containers see as a folder."""

    path: str
    volume: str
    """Its id: another volume of the same name later is not this one."""
    name: str = ""
    """What it was called when the function was published, and where; empty for one without a name."""
    environment: str = "main"
    read_only: bool = False
    sub_path: str = ""
    """Only this folder of it."""


@dataclass(frozen=True)
class BucketMount:
    """A bucket of an object store that a function's containers see as a folder."""

    path: str
    bucket: str
    endpoint: str = ""
    """URL of a store that speaks S3; empty: Amazon's."""
    prefix: str = ""
    """Only objects whose names begin so; empty, or with a slash at the end."""
    secret: Optional[SecretRef] = None
    """With the keys; None: requests are not signed."""
    read_only: bool = False
    requester_pays: bool = False
    force_path_style: bool = False


ISOLATIONS = ("process", "sandbox", "gvisor")
"""From weakest to strongest."""


@dataclass(frozen=True)
class ScheduleSpec:
    """When a function is called by itself: a cron expression, or a period (any of the rest)."""

    cron: str = ""
    """Five fields."""
    timezone: str = "UTC"
    """Of the cron expression; a name of the tz database."""
    years: int = 0
    months: int = 0
    weeks: int = 0
    days: int = 0
    hours: int = 0
    minutes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class FunctionSpec:
    """Everything that a function (or class) declares."""

    name: str
    code: CodeRef
    image: ImageSpec = field(default_factory=ImageSpec)
    methods: tuple[MethodSpec, ...] = (MethodSpec(),)
    is_class: bool = False
    parameters: tuple[ParameterSpec, ...] = ()
    resources: Resources = field(default_factory=Resources)
    scaling: ScalingPolicy = field(default_factory=ScalingPolicy)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout_s: float = DEFAULT_TIMEOUT_S
    startup_timeout_s: float = DEFAULT_TIMEOUT_S
    queue_limit_s: float = DEFAULT_QUEUE_LIMIT_S
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[SecretRef, ...] = ()
    """Their values become environment variables; a later one wins over an earlier, and `env` over all."""
    use_template: bool = True
    """Fork containers from an initialised template where that is safe."""
    memory_snapshot: bool = False
    """The template also ran the `@enter(snap=True)` hooks; a function with GPUs has a template only if this is asked
    for."""
    isolation: str = "process"
    """Least isolation that a node must offer: "process", "sandbox" or "gvisor"."""
    block_network: bool = False
    """Its containers reach nothing but the platform. Needs a node that isolates."""
    outbound_cidr_allowlist: Optional[tuple[str, ...]] = None
    """The only networks that its containers reach; None = whatever the node's operator allows. Likewise."""
    nonpreemptible: bool = False
    """Never on a machine that can be taken away at short notice."""
    single_use: bool = False
    """A container ends after its first input."""
    batching: Optional[BatchPolicy] = None
    """`scaling.max_inputs` is then the batch size times the batches that one container runs at once."""
    schedule: Optional[ScheduleSpec] = None
    """It is called at these times, without arguments."""
    webhook: str = ""
    """URL that is told when a call of it has ended."""
    volumes: tuple[VolumeMount, ...] = ()
    """Folders of its containers that outlive them."""
    buckets: tuple[BucketMount, ...] = ()
    """Buckets that they see as folders."""

    @property
    def batches_at_once(self) -> int:
        """Calls of the code that one container runs at once: of batches, or of single inputs."""
        return self.scaling.max_inputs // (self.batching.max_batch_size if self.batching else 1)

    def method(self, name: str) -> MethodSpec:
        """The method of that name. Raises `InvalidError` when there is none."""
        for candidate in self.methods:
            if candidate.name == name:
                return candidate
        raise InvalidError(f"function {self.name!r} has no method {name!r}")


@dataclass(frozen=True)
class Options:
    """What a handle made by `with_options`, `with_concurrency` or `with_batching` asks for; None: as declared."""

    cpu: Optional[float] = None
    cpu_limit: Optional[float] = None
    memory_mib: Optional[int] = None
    memory_limit_mib: Optional[int] = None
    gpus: Optional[tuple[GpuRequest, ...]] = None
    env: Optional[Mapping[str, str]] = None
    """Added to the declared ones; the same name wins over them."""
    secrets: Optional[tuple[SecretRef, ...]] = None
    """In place of the declared ones."""
    volumes: Optional[tuple[VolumeMount, ...]] = None
    """Likewise; `buckets` is given with it."""
    buckets: Optional[tuple[BucketMount, ...]] = None
    retry: Optional[RetryPolicy] = None
    timeout_s: Optional[float] = None
    max_containers: Optional[int] = None
    buffer_containers: Optional[int] = None
    scaledown_window_s: Optional[float] = None
    max_inputs: Optional[int] = None
    target_inputs: Optional[int] = None
    batching: Optional[BatchPolicy] = None

    def over(self, earlier: Options) -> Options:
        """These, and where they say nothing the earlier ones."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(earlier, **{name: value for name, value in given.items() if value is not None})
