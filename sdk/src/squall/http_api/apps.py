"""Bodies about apps: publishing, versions, functions, their pools and scaling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from squall.spec import FunctionSpec, MethodSpec, ParameterSpec


@dataclass(frozen=True)
class PublishApp:
    """POST /v1/apps: make an ephemeral app, or deploy a version of a named one (atomically)."""

    name: str
    functions: tuple[FunctionSpec, ...]
    mode: str = "ephemeral"
    """"ephemeral", "detached" (ephemeral, outlives its client) or "deployed"."""
    environment: str = "main"
    app_id: Optional[str] = None
    """Given when more functions are added to a running ephemeral app."""
    replaces: bool = False
    """With `app_id`: functions that are not in this request are no longer part of the app."""
    tags: Mapping[str, str] = field(default_factory=dict)
    only_new: bool = False
    """Change nothing if the app is there."""
    tag: str = ""
    """Of a deployed version, for its history: a release's name, a commit."""
    strategy: str = "rolling"
    """"rolling" or "recreate": containers of earlier versions end at once, with what runs in them."""


@dataclass(frozen=True)
class WebAddress:
    """Where a web function answers."""

    function: str
    method: str
    """Of a class; "" for a function."""
    url: str
    """By the name of its own host, which needs DNS (or a system that knows `*.localhost`)."""
    path_url: str
    """Below the gateway's own address, which always works."""
    requires_proxy_auth: bool = False


@dataclass(frozen=True)
class PublishedApp:
    """Answer of POST /v1/apps."""

    app_id: str
    name: str
    version: int
    functions: Mapping[str, str]
    """Function id by function name."""
    unchanged: bool = False
    """A deploy that changed nothing made no new version."""
    web: tuple[WebAddress, ...] = ()


@dataclass(frozen=True)
class AppVersion:
    """One row of GET /v1/apps/{app}/history."""

    version: int
    deployed_at: float
    functions: tuple[str, ...]
    rolled_back_to: int = 0
    """The version whose functions it has, if it came from a rollback."""
    current: bool = False
    tag: str = ""
    """Given when it was deployed."""


@dataclass(frozen=True)
class Rollback:
    """POST /v1/apps/{app}/rollback."""

    version: Optional[int] = None
    """None = the one before the present."""
    strategy: str = "rolling"
    """"recreate": containers of other versions end at once; what runs in them starts again."""


@dataclass(frozen=True)
class FunctionInfo:
    """GET /v1/functions?app=&name=&environment=: what a looked-up handle needs."""

    app_id: str
    app_name: str
    function_id: str
    name: str
    version: int
    is_class: bool = False
    methods: tuple[MethodSpec, ...] = ()
    parameters: tuple[ParameterSpec, ...] = ()
    spec: Optional[FunctionSpec] = None
    """With `?spec=1`: everything that it declares, without the values of its variables."""
    web: tuple[WebAddress, ...] = ()


@dataclass(frozen=True)
class PoolOf:
    """POST /v1/functions/stats: which pool is meant; the fields are those of a call's headers."""

    app_id: str
    function: str
    function_id: str = ""
    parameters: str = ""
    options: str = ""


@dataclass(frozen=True)
class UpdateScaling:
    """POST /v1/functions/scaling. What is left out stays as it is; without any of them it is a look."""

    pool: PoolOf
    min_containers: Optional[int] = None
    max_containers: Optional[int] = None
    """0: no limit."""
    buffer_containers: Optional[int] = None
    scaledown_window_s: Optional[float] = None


@dataclass(frozen=True)
class ScalingSettings:
    """Answer of POST /v1/functions/scaling."""

    min_containers: int
    max_containers: Optional[int]
    buffer_containers: int
    scaledown_window_s: float


@dataclass(frozen=True)
class PoolStats:
    """Answer of POST /v1/functions/stats."""

    backlog: int
    """Inputs that wait for a container."""
    num_total_runners: int
    """Containers that take inputs."""
    num_running_inputs: int
    input_headroom: int
    """Inputs that the present containers could take at once, on top of those that run."""


@dataclass(frozen=True)
class PoolStatus:
    """One pool in GET /v1/apps/{id}/status."""

    pool: str
    function: str
    parameters: Mapping[str, Any]
    backlog: int
    """Inputs waiting or leased but not running."""
    running: int
    ready: int
    starting: int
    desired: int
    reason: str = ""
    """Why the autoscaler wants that many containers."""
    waiting: str = ""
    """Why inputs wait: no room (with each node's reason), a failing start, a build."""


@dataclass(frozen=True)
class AppStatus:
    """GET /v1/apps/{id}/status."""

    app_id: str
    name: str
    state: str
    pools: tuple[PoolStatus, ...] = ()


@dataclass(frozen=True)
class AppSummary:
    """One row of GET /v1/apps."""

    app_id: str
    name: str
    environment: str
    state: str
    """"ephemeral", "detached", "deployed" or "stopped"."""
    version: int
    functions: tuple[str, ...]
    containers: int
    created_at: float
    updated_at: float
