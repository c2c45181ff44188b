"""Apps, function versions, pools and tokens as they lie in the buckets `apps`, `specs` and `tokens`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from squall.spec import FunctionSpec, ScalingPolicy, digest
from squall_contracts.envelope import Message
from squall_contracts.roles import container_token_key

APPS, SPECS, TOKENS = "apps", "specs", "tokens"


@dataclass(frozen=True)
class DeployedVersion(Message):
    """One line of an app's history."""

    TYPE: ClassVar[str] = "deployed_version"

    version: int
    deployed_at: float
    functions: Mapping[str, str]
    rolled_back_to: int = 0
    """It has the functions of that version; 0 = its own."""
    tag: str = ""
    """Given when it was deployed."""
    web: Mapping[str, str] = field(default_factory=dict)
    """See `AppRecord.web`."""


@dataclass(frozen=True)
class AppRecord(Message):
    """An app and the pointer to its present version. Bucket `apps`, key `<app id>`; owner: gateway. A deploy is one
    CAS of this record, so a caller sees the old version in full or the new one in full."""

    TYPE: ClassVar[str] = "app_record"

    app_id: str
    name: str
    workspace: str
    environment: str
    state: str
    """"ephemeral", "detached", "deployed" or "stopped"."""
    version: int
    functions: Mapping[str, str]
    """Function id by name."""
    created_at: float
    updated_at: float
    alive_until: float = 0.0
    """Ephemeral apps stop when their client has not been heard of by then; 0 = no limit."""
    stop_reason: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    history: tuple[DeployedVersion, ...] = ()
    web: Mapping[str, str] = field(default_factory=dict)
    """Its web functions: `function` or `Class.method` by host label or custom domain."""


def app_name_key(workspace: str, environment: str, name: str) -> str:
    """Key of the pointer from a deployed app's name to its id (bucket `apps`, value: the id)."""
    return f"name.{workspace}.{environment}.{digest(name)[:24]}"


@dataclass(frozen=True)
class FunctionRecord(Message):
    """One version of one function. Bucket `specs`, key = function id; written once."""

    TYPE: ClassVar[str] = "function_record"

    function_id: str
    app_id: str
    app_name: str
    workspace: str
    environment: str
    version: int
    ephemeral: bool
    spec: FunctionSpec
    created_at: float
    variant_of: str = ""
    """Id of the version that the options below were applied to; empty for what was declared and published."""
    options: str = ""
    """`squall.http_api.protocol.encode_options` of them."""

    @property
    def published_id(self) -> str:
        """Id under which the app's record names it, while that version is the present one."""
        return self.variant_of or self.function_id


@dataclass(frozen=True)
class PoolRecord(Message):
    """The containers of one function version and parameter set. Bucket `specs`, key `pool.<pool>`; written by the
    gateway, before the pool's first call, and again when its scaling is changed while it is deployed."""

    TYPE: ClassVar[str] = "pool_record"

    pool: str
    function_id: str
    app_id: str
    workspace: str
    parameters: str = ""
    """`squall.http_api.protocol.encode_parameters` of the class parameters; empty for none."""
    created_at: float = 0.0
    scaling: ScalingPolicy | None = None
    """In place of the declared one, since somebody said `update_autoscaler`. A deploy makes pools that have none."""

    def scaled(self, function: FunctionRecord) -> FunctionRecord:
        """The function as this pool's containers are scaled."""
        if self.scaling is None:
            return function
        return replace(function, spec=replace(function.spec, scaling=self.scaling))


def pool_key(pool: str) -> str:
    """Key of a pool's record."""
    return f"pool.{pool}"


def pool_id(function_id: str, parameters: str = "", options: Mapping[str, Any] | None = None) -> str:
    """`po-` and 20 hex digits: the name of the pool for a function version, its parameters and its options."""
    return "po-" + digest([function_id, parameters, dict(options or {})])[:20]


CONTAINER_TOKEN = "sqc"
"""Begins a token that an agent gave to containers: `sqc.<node>.<random>`. Its record lies under a key of that node, the
only ones that the node's agent may write."""
_OF_CONTAINERS = re.compile(rb"sqc\.([a-z0-9-]+)\.[A-Za-z0-9_-]+")


def token_key(token: bytes) -> str:
    """Key of a token's record."""
    hashed, of_containers = hashlib.sha256(token).hexdigest(), _OF_CONTAINERS.fullmatch(token)
    return container_token_key(of_containers[1].decode(), hashed) if of_containers else hashed


@dataclass(frozen=True)
class TokenRecord(Message):
    """A bearer token's rights. Bucket `tokens`, key = `token_key(token)`; the token itself is stored nowhere."""

    TYPE: ClassVar[str] = "token_record"

    workspace: str
    name: str
    scope: str
    """"workspace" (all of the API), "caller" (makes calls, reads results), "container" (calls of one app's
    containers), "service" (agents) or "proxy" (web functions with `requires_proxy_auth`, nothing of the API)."""
    created_at: float
    app_id: str = ""
    expires_at: float = 0.0
    role: str = ""
    """Of scope "workspace": viewer, member or admin; a token that was made before there were roles has none, and the
    rights of an admin."""
