"""The door: every request for a web function. Finds the function, checks who asks, finds a container, passes on.

Owns the order of these steps and what clients are told. Forwarding is in `forward` and `websocket`.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from squall.errors import InvalidError, NotFoundError, RequestSizeError
from squall.http_api import encode_parameters
from squall.ids import new_call_id
from squall.spec import FunctionSpec, MethodSpec, WebSpec
from squall_contracts.functions import AppRecord, FunctionRecord
from squall_gateway.auth import Tokens
from squall_gateway.directory import Directory
from squall_gateway.pools import Pools
from squall_gateway.settings import GatewaySettings
from squall_gateway.targets import pool_of
from squall_gateway.waits import Receive
from squall_gateway.web import forward
from squall_gateway.web.addresses import Addressed, Addresses
from squall_gateway.web.credentials import credentials_of
from squall_gateway.web.routes import Routes, Wanted
from squall_gateway.web.server_http import ServerExchange
from squall_gateway.web.server_socket import ServerLink
from squall_gateway.web.websocket import FrameLink, websocket

Scope = MutableMapping[str, Any]
MAX_BODY_BYTES = 4 << 30
HTTP, WEBSOCKET, RAW = "http", "websocket", "raw"


@dataclass(frozen=True, slots=True)
class Function:
    """The function that a request is for."""

    app: AppRecord
    record: FunctionRecord
    method: MethodSpec
    web: WebSpec


class WebDoor:
    """Answers requests for web functions."""

    def __init__(  # noqa: PLR0913 — its parts
        self,
        settings: GatewaySettings,
        directory: Directory,
        pools: Pools,
        tokens: Tokens,
        routes: Routes,
        addresses: Addresses,
        shards: int,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._pools = pools
        self._tokens = tokens
        self._routes = routes
        self._addresses = addresses
        self._shards = shards

    def addressed(self, scope: Scope, headers: dict[bytes, bytes]) -> Addressed | None:
        """The web function's name in a request; None if it is one for the API."""
        return self._addresses.addressed(headers.get(b"host", b""), scope["path"])

    async def answer(self, addressed: Addressed, scope: Scope, receive: Receive, send: forward.Send) -> None:
        """One HTTP request, to its end. Raises `SquallError` for what is answered by an error."""
        headers = dict(scope["headers"])
        function = await self._function(addressed)
        await self._authorize(function, headers)
        check_length(headers.get(b"content-length"))
        server = function.web.kind == "server"
        wanted = await self._wanted(function, addressed, scope, RAW if server else HTTP)
        async with self._routes.open(wanted) as upstream:
            exchange = (
                ServerExchange(upstream, receive, send, wanted.opening["scope"])
                if server
                else forward.FrameExchange(upstream, receive, send)
            )
            await exchange.run(function.record.spec.timeout_s)

    async def connect(self, addressed: Addressed, scope: Scope, receive: Receive, send: forward.Send) -> None:
        """One WebSocket, to its end. Raises `SquallError` for what is answered by an error."""
        function = await self._function(addressed)
        await self._authorize(function, dict(scope["headers"]))
        server = function.web.kind == "server"
        wanted = await self._wanted(function, addressed, scope, RAW if server else WEBSOCKET)
        async with self._routes.open(wanted) as upstream:
            link = ServerLink(upstream, wanted.opening["scope"]) if server else FrameLink(upstream)
            await websocket(link, receive, send, function.record.spec.timeout_s)

    # ------------------------------------------------------------------ steps

    async def _function(self, addressed: Addressed) -> Function:
        app = self._directory.web.find(addressed.name)
        if app is None:
            raise NotFoundError(f"there is no web function {addressed.name!r}")
        name, _, method = app.web[addressed.name].partition(".")
        record = await self._directory.function(app.functions[name], app.workspace)
        spec = record.spec.method(method)
        if spec.web is None:
            raise NotFoundError(f"there is no web function {addressed.name!r}")
        return Function(app, record, spec, spec.web)

    async def _authorize(self, function: Function, headers: dict[bytes, bytes]) -> None:
        if function.web.requires_proxy_auth:
            await self._tokens.check_proxy(credentials_of(headers), function.app.workspace)

    async def _wanted(self, function: Function, addressed: Addressed, scope: Scope, kind: str) -> Wanted:
        spec = function.record.spec
        pool = pool_of(function.record, parameters_of(spec, scope["query_string"]))
        if not self._pools.is_ready(pool.pool):
            await self._pools.ensure(pool)
        call = new_call_id(self._shards)
        opening = {
            "type": kind,
            "method": function.method.name,
            "id": call,
            "traceparent": "",
            "scope": forward.scope_of(scope, addressed.root_path),
        }
        return Wanted(
            pool=pool.pool,
            ask={"pool": pool.pool, "id": call, "timeout_s": spec.timeout_s},
            opening=opening,
            hold_s=self._settings.web_hold_s,
            max_held=self._settings.web_max_held,
            dev=function.app.state != "deployed",
        )


def check_length(header: bytes | None) -> None:
    """Refuse bodies that are too large before anything is read of them."""
    if header is not None and int(header) > MAX_BODY_BYTES:
        raise RequestSizeError(f"a request may have {MAX_BODY_BYTES} bytes, not {int(header)}")


def parameters_of(spec: FunctionSpec, query: bytes) -> str:
    """Class parameters from the query, encoded; empty for a plain function. Raises `InvalidError`."""
    if not spec.parameters:
        return ""
    given = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    values: dict[str, Any] = {}
    for parameter in spec.parameters:
        if parameter.name in given:
            values[parameter.name] = _value(parameter.name, parameter.type, given[parameter.name])
        elif parameter.has_default:
            values[parameter.name] = _default(parameter.default)
        else:
            raise InvalidError(f"the query needs the parameter {parameter.name!r}")
    return encode_parameters(values)


def _value(name: str, kind: str, text: str) -> Any:
    if kind == "int":
        try:
            return int(text)
        except ValueError as error:
            raise InvalidError(f"the parameter {name!r} must be a whole number, got {text!r}") from error
    if kind == "bool":
        if text.lower() not in ("true", "false", "1", "0"):
            raise InvalidError(f"the parameter {name!r} must be true or false, got {text!r}")
        return text.lower() in ("true", "1")
    return text.encode() if kind == "bytes" else text


def _default(value: Any) -> Any:
    if isinstance(value, dict) and "b64" in value:
        import base64

        return base64.b64decode(value["b64"])
    return value
