"""Where a call goes: from the caller's headers to a function version, a method and a pool. Reads the directory only."""

from __future__ import annotations

import json
from binascii import Error as Base64Error
from dataclasses import dataclass

from squall.errors import InvalidError, NotFoundError
from squall.http_api import decode_parameters, encode_parameters
from squall.spec import FunctionSpec, Kind
from squall_contracts.functions import FunctionRecord, PoolRecord, pool_id
from squall_contracts.retention import journal_ttl_s
from squall_gateway.call_headers import CallHeaders
from squall_gateway.directory import Directory, KnownApp

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

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._cache: dict[tuple[str, ...], Target] = {}

    async def of(self, call: CallHeaders, workspace: str) -> Target:
        """The target of a call. Raises `NotFoundError` or `InvalidError`."""
        key = (workspace, call.app, call.function, call.function_id, call.method, call.parameters)
        known, app = self._cache.get(key), self._directory.known_app(call.app)
        if known is not None and app is not None and known.app_revision == app.revision:
            return known
        target = await self._resolve(call, workspace)
        if len(self._cache) >= MAX_TARGETS:
            self._cache.clear()
        self._cache[key] = target
        return target

    async def _resolve(self, call: CallHeaders, workspace: str) -> Target:
        app = await self._directory.app(call.app, workspace)
        if call.function not in app.record.functions and not call.function_id:
            # Another gateway may have added it a moment ago.
            app = await self._directory.app(call.app, workspace, fresh=True)
        function_id = call.function_id or app.record.functions.get(call.function, "")
        if not function_id:
            raise NotFoundError(f"app {app.record.name!r} has no function {call.function!r}")
        function = await self._directory.function(function_id, workspace)
        if function.app_id != call.app:
            raise NotFoundError(f"function {function_id} is not of app {call.app}")
        return self._target(call, app, function)

    def _target(self, call: CallHeaders, app: KnownApp, function: FunctionRecord) -> Target:
        spec = function.spec
        method = spec.method(call.method)
        parameters = canonical_parameters(spec, call.parameters)
        pool = PoolRecord(
            pool=pool_id(function.function_id, parameters),
            function_id=function.function_id,
            app_id=function.app_id,
            workspace=function.workspace,
            parameters=parameters,
        )
        return Target(pool, function, method.is_generator, journal_ttl_s(spec), app.revision)


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
