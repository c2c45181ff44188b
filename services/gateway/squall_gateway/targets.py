"""Where a call goes: from the caller's headers to a function version, a method and a pool. Reads the directory only."""

from __future__ import annotations

import json
from binascii import Error as Base64Error
from dataclasses import dataclass

from squall.errors import InvalidError, NotFoundError
from squall.http_api.protocol import decode_parameters, encode_parameters
from squall.spec import FunctionSpec, Kind
from squall_contracts.functions import FunctionRecord, PoolRecord, pool_id
from squall_contracts.retention import journal_ttl_s
from squall_gateway.call_headers import CallHeaders
from squall_gateway.directory import Directory, KnownApp
from squall_gateway.variants import Variants

MAX_TARGETS = 50_000
"""Resolved targets kept in memory; all are forgotten at once beyond that."""


@dataclass(frozen=True, slots=True)
class Target:
    """Everything that accepting an input needs to know about its function."""

    pool: PoolRecord
    function: FunctionRecord
    is_generator: bool
    journal_ttl_s: float
    app_revision: int

    @property
    def queue_limit_s(self) -> float:
        """How long an input may wait."""
        return self.function.spec.queue_limit_s


class Targets:
    """Resolves calls, and remembers what it resolved until the app changes."""

    def __init__(self, directory: Directory, variants: Variants) -> None:
        self._directory = directory
        self._variants = variants
        self._cache: dict[tuple[str, ...], Target] = {}

    async def of(self, call: CallHeaders, workspace: str) -> Target:
        """The target of a call. Raises `NotFoundError` or `InvalidError`."""
        key = (workspace, call.app, call.function, call.function_id, call.method, call.parameters, call.options)
        known, app = self._cache.get(key), self._directory.known_app(call.app)
        if known is not None and app is not None and known.app_revision == app.revision:
            return known
        target = await self._resolve(call, workspace)
        if len(self._cache) >= MAX_TARGETS:
            self._cache.clear()
        self._cache[key] = target
        return target

    async def _resolve(self, call: CallHeaders, workspace: str) -> Target:
        app, function = await self.function(call.app, call.function, call.function_id, call.options, workspace)
        method = function.spec.method(call.method)
        if method.web is not None:
            raise InvalidError(
                f"{function.spec.name!r} is a web function: it cannot be called",
                fix="Send a request to its address, which `get_web_url()` tells.",
            )
        pool = pool_of(function, call.parameters)
        return Target(pool, function, method.is_generator, journal_ttl_s(function.spec), app.revision)

    async def function(
        self, app_id: str, name: str, function_id: str, options: str, workspace: str
    ) -> tuple[KnownApp, FunctionRecord]:
        """The version of a function that is meant, or its variant. Raises `NotFoundError` or `InvalidError`."""
        app = await self._directory.app(app_id, workspace)
        if name not in app.record.functions and not function_id:
            # Another gateway may have added it a moment ago.
            app = await self._directory.app(app_id, workspace, fresh=True)
        wanted = function_id or app.record.functions.get(name, "")
        if not wanted:
            raise NotFoundError(f"app {app.record.name!r} has no function {name!r}")
        function = await self._directory.function(wanted, workspace)
        if function.app_id != app_id:
            raise NotFoundError(f"function {wanted} is not of app {app_id}")
        return app, await self._variants.of(function, options) if options else function


def pool_of(function: FunctionRecord, parameters: str) -> PoolRecord:
    """The pool of a version and a set of class parameters. Raises `InvalidError`."""
    canonical = canonical_parameters(function.spec, parameters)
    return PoolRecord(
        pool=pool_id(function.function_id, canonical),
        function_id=function.function_id,
        app_id=function.app_id,
        workspace=function.workspace,
        parameters=canonical,
    )


def canonical_parameters(spec: FunctionSpec, encoded: str) -> str:
    """Class parameters in the one form that names their pool; empty for none. Raises `InvalidError`."""
    if not encoded:
        return ""
    try:
        values = decode_parameters(encoded)
        names = set(values)
    except (Base64Error, KeyError, TypeError, AttributeError, ValueError, json.JSONDecodeError) as error:
        raise InvalidError(f"class parameters cannot be read: {error}") from error
    declared = {parameter.name for parameter in spec.parameters}
    if not names <= declared:
        raise InvalidError(f"{spec.name!r} has no parameter {sorted(names - declared)[0]!r}")
    return encode_parameters(values) if values else ""


def is_waited_for(kind: Kind) -> bool:
    """Whether a caller waits for it: the sync limit counts it."""
    return kind is not Kind.SPAWN
