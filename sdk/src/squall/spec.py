"""The vocabulary: frozen declarations of functions, images, resources, scaling and retries.

Owns the field names, units, defaults and limits. Plain data: no I/O, no defaults taken from the environment.
`to_wire` and `from_wire` turn any of these into JSON-able dicts and back; unknown fields are ignored on the way back,
so an older reader understands a newer writer.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar

from squall.errors import InvalidError

DISK_IN_MEMORY_MIB = 512
"""A container's own disk up to this size is kept in memory, and counts as such."""
INLINE_LIMIT_BYTES = 64 * 1024
"""Payloads above this go through the blob store."""
MIN_DISK_MIB, MAX_DISK_MIB = 16, 3 * 1024 * 1024
"""Of `ephemeral_disk`. Of less nearly nothing can be used: a disk with 4 MiB left counts as full."""
MAX_PAYLOAD_BYTES = 4 * 1024**3
"""Largest argument or result payload."""
DEFAULT_TIMEOUT_S = 300.0
DEFAULT_SCALEDOWN_WINDOW_S = 60.0
DEFAULT_QUEUE_LIMIT_S = 24 * 3600.0
"""How long a call may wait in the queue before it ends `expired`."""
MAX_INFRA_FAILURES = 8
"""Container crashes, OOM kills and lost agents after which a call ends `failed(infra)`."""
MAX_WEBHOOK_CHARACTERS = 2048
CHUNK_INPUTS = 1000
"""Most inputs of a map in one request, and in one atomic write."""


class Kind(str, enum.Enum):
    """How a call was made; decides how its result travels and how long it is kept."""

    REMOTE = "remote"
    MAP = "map"
    SPAWN = "spawn"
    GENERATOR = "generator"


class Outcome(str, enum.Enum):
    """The five ways a call ends."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Encoding(str, enum.Enum):
    """How payload bytes are encoded; services never look inside."""

    PICKLE = "pickle"
    JSON = "json"
    MSGPACK = "msgpack"


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
class ImageStep:
    """One build step: what it does and its arguments. Equal prefixes of steps are built once."""

    kind: str
    """Bases: "base" (nothing), "debian_slim", "from_registry", "from_dockerfile", "from_scratch". Layers:
    "pip_install", "apt_install", "run_commands", "run_function", "dockerfile_commands", "add_local", "add_python".
    Configuration: "env", "workdir", "entrypoint", "cmd", "shell"."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """pip_install: `packages` (sorted requirement strings) or `requirements` (content of a requirements file) and, only
    where given, `index_url`, `extra_index_url`, `find_links`, `pre`, `extra_options`. env: `variables` (str to str).
    workdir: `path`. from_registry: `tag`. apt_install: `packages`. run_commands: `commands`. run_function: `function`,
    `source_key`, pickled `arguments` in base64, `timeout_s`. Dockerfiles: `text`, `build_args`, `context`. add_local:
    `files`. entrypoint, cmd, shell: `command`. Files of the user are {"sha256", "bytes"} of a zip in the blob store.
    Every step that builds may have `env` (for itself) and `forced` (a mark that makes it a step of its own). Steps with
    `secrets` (what the program calls them) get a `scope` from the server: they are nobody else's. Names
    that start with "_" say where something is and are no part of the image's identity."""


ENVIRONMENT_KINDS = frozenset(
    {"base", "debian_slim", "pip_install", "uv_pip_install", "env", "workdir", "cmd", "shell"}
)
"""Steps that can be had without a root file system."""


def identity(step: ImageStep) -> ImageStep:
    """The step without what only says where something is."""
    return ImageStep(step.kind, {name: value for name, value in step.arguments.items() if not name.startswith("_")})


@dataclass(frozen=True)
class ImageSpec:
    """A chain of steps. Its id is the hash of all of them."""

    python_version: str = "3.11"
    """Empty: the one that the base has."""
    steps: tuple[ImageStep, ...] = ()

    @property
    def id(self) -> str:
        """`im-` and 24 hex digits: the content address of the image."""
        return "im-" + digest(to_wire(ImageSpec(self.python_version, tuple(map(identity, self.steps)))))[:24]

    @property
    def recipe_id(self) -> str:
        """The id as the program knows it: the server adds whose the secrets are that steps are made with."""
        steps = (
            ImageStep(step.kind, {name: value for name, value in step.arguments.items() if name != "scope"})
            for step in self.steps
        )
        return ImageSpec(self.python_version, tuple(steps)).id

    @property
    def needs_root(self) -> bool:
        """Whether it has a file system of its own: a Python environment on the machine's cannot stand for it."""
        return any(_needs_root(step) for step in self.steps)

    @property
    def needs_isolation(self) -> bool:
        """The same, but for what plain processes have of their machine: packages of the system, and a Python that
        stands in for that of an official image."""
        return any(_needs_root(step) for step in self.steps if step.kind != "apt_install" and not official_python(step))


def official_python(step: ImageStep) -> str:
    """The minor version of an official Python image on Debian that a `from_registry` step names; "" for other steps."""
    import re

    own = step.arguments.get("secrets") or step.arguments.get("forced")
    if step.kind != "from_registry" or own:
        return ""
    tag = r"(?:docker\.io/)?(?:library/)?python:(3\.\d+)(?:\.\d+)?(?:-(?:slim|bullseye|bookworm|trixie))*"
    found = re.fullmatch(tag, str(step.arguments.get("tag", "")))
    return found[1] if found else ""


def _needs_root(step: ImageStep) -> bool:
    if step.arguments.get("secrets"):
        return True
    if step.kind == "entrypoint":
        return bool(step.arguments.get("command"))
    return step.kind not in ENVIRONMENT_KINDS


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


def validate(spec: FunctionSpec) -> FunctionSpec:
    """The spec itself if its values are consistent. Raises `InvalidError` naming the first value that is not."""
    scaling, retry, resources = spec.scaling, spec.retry, spec.resources
    _check(scaling.min_containers >= 0, "min_containers must be 0 or more", scaling.min_containers)
    _check(
        scaling.max_containers is None or scaling.max_containers >= 1,
        "max_containers must be 1 or more",
        scaling.max_containers,
    )
    _check(
        scaling.max_containers is None or scaling.max_containers >= scaling.min_containers,
        f"max_containers must not be less than min_containers ({scaling.min_containers})",
        scaling.max_containers,
    )
    _check(scaling.buffer_containers >= 0, "buffer_containers must be 0 or more", scaling.buffer_containers)
    _check(
        2 <= scaling.scaledown_window_s <= 3600,
        "scaledown_window must be 2 to 3600 seconds",
        scaling.scaledown_window_s,
    )
    _check(scaling.max_inputs >= 1, "max_inputs must be 1 or more", scaling.max_inputs)
    _check(
        1 <= scaling.target_inputs <= scaling.max_inputs,
        "target_inputs must be 1 to max_inputs",
        scaling.target_inputs,
    )
    _check_batching(spec)
    if spec.webhook:
        check_webhook(spec.webhook)
    _check(
        not spec.single_use or scaling.max_inputs == 1,
        "single_use_containers take one input: max_inputs must be 1, without batches",
        scaling.max_inputs,
    )
    _check(1 <= spec.timeout_s <= 86400, "timeout must be 1 to 86400 seconds", spec.timeout_s)
    _check(
        1 <= spec.startup_timeout_s <= 86400,
        "startup_timeout must be 1 to 86400 seconds",
        spec.startup_timeout_s,
    )
    _check(retry.max_retries >= 0, "max_retries must be 0 or more", retry.max_retries)
    _check(1 <= retry.backoff_coefficient <= 10, "backoff_coefficient must be 1 to 10", retry.backoff_coefficient)
    _check(0 <= retry.initial_delay_s <= 60, "initial_delay must be 0 to 60 seconds", retry.initial_delay_s)
    _check(1 <= retry.max_delay_s <= 60, "max_delay must be 1 to 60 seconds", retry.max_delay_s)
    _check(resources.cpu > 0, "cpu must be positive", resources.cpu)
    _check(
        resources.cpu_limit is None or resources.cpu_limit >= resources.cpu,
        "the cpu limit must not be less than the request",
        resources.cpu_limit,
    )
    _check(resources.memory_mib > 0, "memory must be positive", resources.memory_mib)
    _check(
        resources.memory_limit_mib is None or resources.memory_limit_mib >= resources.memory_mib,
        "the memory limit must not be less than the request",
        resources.memory_limit_mib,
    )
    _check(
        resources.ephemeral_disk_mib is None or MIN_DISK_MIB <= resources.ephemeral_disk_mib <= MAX_DISK_MIB,
        f"ephemeral_disk must be {MIN_DISK_MIB} to {MAX_DISK_MIB} MiB",
        resources.ephemeral_disk_mib,
    )
    _check(
        spec.use_template or not spec.memory_snapshot,
        "enable_memory_snapshot=True needs a template: use_template must not be False",
        spec.use_template,
    )
    _check(spec.isolation in ISOLATIONS, f"isolation must be one of {', '.join(ISOLATIONS)}", spec.isolation)
    _check(
        spec.isolation != ISOLATIONS[0] or not (spec.block_network or spec.outbound_cidr_allowlist is not None),
        'block_network and outbound_cidr_allowlist need isolation="sandbox" or more',
        spec.isolation,
    )
    _check_networks(spec)
    _check_volumes(spec.volumes, spec.buckets)
    for gpu in resources.gpus:
        _check(gpu.count >= 1, "a number of GPUs must be 1 or more", gpu.count)
    return spec


def _check_networks(spec: FunctionSpec) -> None:
    _check(
        not (spec.block_network and spec.outbound_cidr_allowlist is not None),
        "block_network and outbound_cidr_allowlist exclude each other",
        spec.block_network,
    )
    if spec.outbound_cidr_allowlist is None:
        return
    import ipaddress  # 10 ms, for the few that need it

    for network in spec.outbound_cidr_allowlist:
        try:
            ipaddress.IPv4Network(network)
        except ValueError as error:
            raise InvalidError(
                f"outbound_cidr_allowlist has {network!r}: {error}", fix='Write networks such as "203.0.113.0/24".'
            ) from None


NO_MOUNT_POINTS = ("/", "/root", "/tmp")
PLATFORM_FOLDERS = ("/proc", "/sys", "/dev", "/run/squall")


def _check_volumes(volumes: tuple[VolumeMount, ...], buckets: tuple[BucketMount, ...]) -> None:
    paths = [volume.path for volume in volumes] + [bucket.path for bucket in buckets]
    for path in paths:
        check_mount_point(path)
    for path in paths:
        inside = [other for other in paths if path.startswith(other + "/")]
        _check(not inside and paths.count(path) == 1, "volumes must not be mounted at or in one another", path)
    for bucket in buckets:
        check_bucket(bucket)
    for mount in volumes:
        twice = [other.path for other in volumes if other.volume == mount.volume]
        _check(len(twice) == 1, "a function can mount a volume at one place only", sorted(twice))


def check_bucket(mount: BucketMount) -> None:
    """Raise `InvalidError` for what cannot be a bucket."""
    from urllib.parse import urlsplit

    name = mount.bucket
    named = 3 <= len(name) <= 63 and name.isascii() and not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789.-_")
    _check(named and name[0].isalnum(), "a bucket's name has 3 to 63 of a-z, 0-9, '.', '_' and '-'", name[:100])
    if mount.endpoint:
        try:
            parts = urlsplit(mount.endpoint)
            whole = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            parts, whole = urlsplit(""), False
        plain = mount.endpoint.isascii() and mount.endpoint.isprintable() and " " not in mount.endpoint
        rest = parts.path.strip("/") or parts.query or parts.fragment or parts.username
        whole = whole and plain and parts.scheme in ("http", "https") and not rest and len(mount.endpoint) <= 1000
        _check(whole, "bucket_endpoint_url must be an http(s) URL without a path or keys", mount.endpoint[:200])
    prefix = mount.prefix
    inside = all(part not in ("", ".", "..") for part in prefix[:-1].split("/")) and prefix.isprintable()
    _check(
        not prefix or (prefix.endswith("/") and inside and len(prefix.encode(errors="replace")) <= 900),
        'key_prefix must end with "/" and begin without; it has no "//", "." or ".."',
        prefix[:200],
    )


def check_mount_point(path: str) -> None:
    """Raise `InvalidError` unless a volume can be mounted there."""
    import posixpath

    _check(
        path.startswith("/")
        and not path.startswith("//")
        and "\0" not in path
        and path.encode(errors="replace").decode() == path
        and posixpath.normpath(path) == path,
        'volumes= needs absolute paths without "..", "//" and a slash at the end',
        path,
    )
    taken = path in NO_MOUNT_POINTS or any(
        path == own or path.startswith(own + "/") or own.startswith(path + "/") for own in PLATFORM_FOLDERS
    )
    _check(not taken, "volumes cannot be mounted there: the container needs that folder itself", path)


def _check_batching(spec: FunctionSpec) -> None:
    batching = spec.batching
    if batching is None:
        return
    size, slots = batching.max_batch_size, spec.scaling.max_inputs
    _check(1 <= size <= 1000, "max_batch_size must be 1 to 1000", size)
    _check(0 <= batching.wait_ms <= 600_000, "wait_ms must be 0 to 600000", batching.wait_ms)
    _check(slots >= size and slots % size == 0, f"max_inputs must be a multiple of max_batch_size ({size})", slots)
    _check(len(spec.methods) == 1, "a class with a batched method can have no other method", len(spec.methods))
    _check(not spec.methods[0].is_generator, "a batched function cannot be a generator", spec.name)


def check_webhook(url: str) -> str:
    """`url` itself if it can be a receiver's. Raises `InvalidError`."""
    from urllib.parse import urlsplit

    whole = (
        len(url) <= MAX_WEBHOOK_CHARACTERS and url.isascii() and url.isprintable() and not set(url) & set(' "<>\\^`{|}')
    )
    _check(whole, f"webhook must be a URL of at most {MAX_WEBHOOK_CHARACTERS} ASCII characters, escaped", url[:200])
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    _check(bool(host) and url.startswith(("https://", "http://")), "webhook must be an http(s) URL", url)
    _check(port is None or port > 0, "webhook must have a port above 0", url)
    _check("@" not in parts.netloc, "webhook must have no user and password (requests are signed instead)", host)
    _check(not parts.fragment, "webhook must have no fragment", url)
    return url


def _check(valid: bool, rule: str, value: Any) -> None:
    if not valid:
        raise InvalidError(f"{rule}, got {value!r}")


# --- wire form -------------------------------------------------------------------------------------------------------

T = TypeVar("T")
UNIONS = (typing.Union, getattr(types, "UnionType", typing.Union))
"""`Optional[X]`, and `X | None` as services write it."""


def to_wire(value: Any) -> Any:
    """Dataclasses, enums, tuples and mappings as JSON-able values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_wire(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [to_wire(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_wire(item) for key, item in value.items()}
    return value


def from_wire(cls: type[T], body: Mapping[str, Any]) -> T:
    """The `cls` that `to_wire` described. Raises `InvalidError` naming a missing field or a wrong type."""
    hints = _hints(cls)  # type: ignore[arg-type]  # a class is hashable; mypy doubts type[T]
    values: dict[str, Any] = {}
    for spec_field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if spec_field.name in body:
            values[spec_field.name] = _decode(
                hints[spec_field.name], body[spec_field.name], f"{cls.__name__}.{spec_field.name}"
            )
    try:
        return cls(**values)
    except TypeError as error:
        raise InvalidError(f"{cls.__name__}: {error}") from error


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        return None if value is None else _decode(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        _expect(isinstance(value, (list, tuple)), "a list", value, where)
        return tuple(_decode(arguments[0], item, where) for item in value)
    if origin is not None and isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
        _expect(isinstance(value, dict), "an object", value, where)
        return dict(value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        _expect(isinstance(value, dict), "an object", value, where)
        return from_wire(hint, value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        _expect(value in [member.value for member in hint], f"one of {[m.value for m in hint]}", value, where)
        return hint(value)
    if hint is float:
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), "a number", value, where)
        return float(value)
    if hint in (int, str, bool, bytes):
        _expect(
            isinstance(value, hint) and not (hint is int and isinstance(value, bool)),
            f"of type {hint.__name__}",
            value,
            where,
        )
    return value


def _expect(valid: bool, wanted: str, value: Any, where: str) -> None:
    if not valid:
        raise InvalidError(f"{where} must be {wanted}, got {value!r}")


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
