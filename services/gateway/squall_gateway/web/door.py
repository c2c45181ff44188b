"""The door: every request for a web function. Finds the function, checks who asks, finds a container, passes on.

Owns the order of these steps and what clients are told. Forwarding is in `forward` and `websocket`.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from squall.errors import NotFoundError, RequestSizeError
from squall.ids import new_call_id
from squall.spec import MethodSpec, WebSpec
from squall_contracts.functions import AppRecord, FunctionRecord, PoolRecord
from squall_gateway.answers import send_whole
from squall_gateway.auth import Tokens
from squall_gateway.bodies import ClientGone
from squall_gateway.directory import Directory
from squall_gateway.policy.web_pools import Allowance
from squall_gateway.pools import Pools
from squall_gateway.settings import GatewaySettings
from squall_gateway.targets import pool_of
from squall_gateway.waits import Receive
from squall_gateway.web import forward, server_http
from squall_gateway.web.addresses import API_PREFIX, PATH_PREFIX, Addressed, Addresses
from squall_gateway.web.credentials import credentials_of
from squall_gateway.web.cross_origin import is_preflight, preflight_answer
from squall_gateway.web.leaving import Leaving
from squall_gateway.web.parameters import parameters_of
from squall_gateway.web.parking import Parked, Parking, begins, parked_call, patience_of, send_away
from squall_gateway.web.path_form import PathForm, home_of, home_of_socket, is_navigation, with_slash
from squall_gateway.web.records import Asked, WebRecords
from squall_gateway.web.routes import Route, Routes, Wanted
from squall_gateway.web.server_http import ServerExchange
from squall_gateway.web.server_socket import ServerLink
from squall_gateway.web.sockets import OpenSockets
from squall_gateway.web.websocket import FrameLink, websocket
from squall_service.clock import Clock

Scope = MutableMapping[str, Any]
HTTP, WEBSOCKET, RAW = "http", "websocket", "raw"
ASKED = "squall.web"
SAFE = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))
_SESSIONS = (b"squall-session-id", b"modal-session-id", b"modal-routing-affinity-key")


@dataclass(frozen=True, slots=True)
class Function:
    """The function that a request is for."""

    app: AppRecord
    record: FunctionRecord
    method: MethodSpec
    web: WebSpec

    @property
    def is_server(self) -> bool:
        """Whether it answers by itself, on a port."""
        return self.web.kind == "server"


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorParts:
    """What the door needs, built once in service.py."""

    settings: GatewaySettings
    directory: Directory
    pools: Pools
    tokens: Tokens
    routes: Routes
    addresses: Addresses
    sockets: OpenSockets
    records: WebRecords
    clock: Clock
    shards: int


class WebDoor:
    """Answers requests for web functions."""

    def __init__(self, parts: DoorParts) -> None:
        self._parts = parts
        self._parking = Parking(parts.settings.web_max_held)
        self._allowed: dict[str, Allowance] = {}
        """New pools, by function version."""

    def addressed(self, scope: Scope, headers: dict[bytes, bytes]) -> Addressed | None:
        """The web function's name in a request; None if it is one for the API."""
        return self._parts.addresses.addressed(headers.get(b"host", b""), scope["path"])

    def astray(self, scope: Scope, headers: dict[bytes, bytes]) -> bytes:
        """Where a request belongs that a page of the path form sent to a path of the host's root; empty: to the API."""
        if b"referer" not in headers and b"cookie" not in headers:
            return b""
        of_the_api = scope["path"].startswith(API_PREFIX)
        prefix = home_of(headers, self._is_known, of_the_api=of_the_api).encode("latin-1")
        query = scope["query_string"]
        return prefix and prefix + scope["raw_path"] + (b"?" + query if query else b"")

    def astray_socket(self, scope: Scope, headers: dict[bytes, bytes]) -> Addressed | None:
        """The same for a WebSocket. Browsers follow no redirect of one: it gets the path that it should have had."""
        prefix = home_of_socket(headers, self._is_known)
        if not prefix:
            return None
        scope["path"], scope["raw_path"] = prefix + scope["path"], prefix.encode("latin-1") + scope["raw_path"]
        return Addressed(prefix[len(PATH_PREFIX) :].lower(), prefix)

    def _is_known(self, name: str) -> bool:
        return "." not in name and name in self._parts.directory.web

    async def tick(self) -> None:
        """Twice a second: what has waited for long enough."""
        now = self._parts.clock.monotonic()
        self._parking.tick(now)
        self._parts.sockets.tick(now)
        self._parts.records.tick()
        if len(self._allowed) > 10_000:
            self._allowed.clear()

    async def answer(self, addressed: Addressed, scope: Scope, receive: Receive, send: forward.Send) -> None:
        """One HTTP request, to its end. Raises `SquallError` for what is answered by an error."""
        headers = dict(scope["headers"])
        if addressed.root_path:
            send = PathForm(addressed, scope, headers, self._is_known).sends(send)
        function = await self._function(addressed)
        if function.web.requires_proxy_auth and is_preflight(scope["method"], headers):
            await send_whole(send, HTTPStatus.OK, b"", preflight_answer(headers))
            return
        if addressed.root_path == scope["path"] and scope["method"] == "GET" and is_navigation(headers):
            await send_whole(send, HTTPStatus.TEMPORARY_REDIRECT, b"", with_slash(scope))
            return
        await self._authorize(function, headers)
        check_length(headers.get(b"content-length"))
        self._as_clients_see_it(scope)
        if call := parked_call(scope["query_string"]):
            await self._answer_parked(call, addressed, scope, receive, send)
            return
        asked = self._begin(function, scope, headers)
        with Leaving(receive):
            await self._forward(function, addressed, asked, receive, send)

    def _begin(self, function: Function, scope: Scope, headers: dict[bytes, bytes]) -> Asked:
        call = new_call_id(self._parts.shards)
        asked = scope[ASKED] = self._parts.records.begin(function.record, call, scope, headers)
        return asked

    def ended(self, scope: Scope, status: int) -> None:
        """A request is over, and how it was answered."""
        asked = scope.pop(ASKED, None)
        if asked is not None:
            self._parts.records.end(asked, status)

    async def _forward(
        self, function: Function, addressed: Addressed, asked: Asked, receive: Receive, send: forward.Send
    ) -> None:
        scope, headers = asked.scope, asked.headers
        body = await forward.small_body(headers, receive)
        pool = await self._pool(function, scope["query_string"])
        sent = forward.scope_of(scope, addressed.root_path, asked.traceparent)
        opening = self._opening(function, asked, sent, RAW if function.is_server else HTTP)
        whole = body is not None and not function.is_server
        if whole:
            opening["keep"] = True
        if function.is_server:
            first = forward.first_open(opening) + server_http.first_bytes(sent, body)
        else:
            first = forward.first_frames(opening, body)
        route = await self._parts.routes.open(self._wanted(function, pool, asked, first, whole=whole))
        asked.granted(pool.pool, route.upstream)
        exchange: forward.Exchange
        if function.is_server:
            exchange = ServerExchange(route.upstream, receive, send, body_sent=body is not None, scope=sent)
        else:
            exchange = forward.FrameExchange(route.upstream, receive, send, body_sent=body is not None)
        patience_s = patience_of(headers, self._parts.settings.web_redirect_s)
        parked = None
        try:
            if not patience_s or self._parking.full:
                await exchange.run(function.record.spec.timeout_s)
            else:
                parked = await self._patiently(exchange, route, function, patience_s, addressed.name)
        finally:
            if parked is None:
                route.close()
        if parked is not None:
            self._parking.park(asked.call, parked)
            await send_away(scope, headers, send, asked.call)

    async def _patiently(
        self, exchange: forward.Exchange, route: Route, function: Function, patience_s: float, name: str
    ) -> Parked | None:
        """Answer, or have it parked if the answer does not begin in time."""
        now, timeout_s = self._parts.clock.monotonic(), function.record.spec.timeout_s
        if exchange.body_sent and patience_s < timeout_s and not await begins(route, patience_s):
            ends_at = now + timeout_s
            return Parked(
                name=name, route=route, exchange=exchange, ends_at=ends_at, patience_s=patience_s,
                seen_at=self._parts.clock.monotonic(),
            )  # fmt: skip
        await exchange.run(max(0.0, timeout_s - (self._parts.clock.monotonic() - now)))
        return None

    async def _answer_parked(
        self, call: str, addressed: Addressed, scope: Scope, receive: Receive, send: forward.Send
    ) -> None:
        clock = self._parts.clock
        parked = self._parking.find(call, addressed.name, scope["method"])
        parked.asking += 1
        try:
            with Leaving(receive):
                left_s = max(0.0, parked.ends_at - clock.monotonic())
                if parked.patience_s < left_s and not await begins(parked.route, parked.patience_s):
                    await send_away(scope, dict(scope["headers"]), send, call)
                    return
                if not self._parking.take(call, parked):
                    raise NotFoundError(f"the answer of {call} was given to another client")
                try:
                    parked.exchange.give_to(send)
                    await parked.exchange.run(max(0.0, parked.ends_at - clock.monotonic()))
                finally:
                    parked.route.close()
        finally:
            parked.asking -= 1
            parked.seen_at = clock.monotonic()

    async def connect(self, addressed: Addressed, scope: Scope, receive: Receive, send: forward.Send) -> bool:
        """One WebSocket, to its end; False if the app refused it. Raises `SquallError` for what is answered by an
        error."""
        headers = dict(scope["headers"])
        function = await self._function(addressed)
        await self._authorize(function, headers)
        self._as_clients_see_it(scope)
        return await self._talk(function, addressed, self._begin(function, scope, headers), receive, send)

    async def _talk(
        self, function: Function, addressed: Addressed, asked: Asked, receive: Receive, send: forward.Send
    ) -> bool:
        route, link = await self._link(function, addressed, asked, receive)
        try:
            grace_s, container = function.web.websocket_grace_s, route.upstream.container
            with self._parts.sockets.opened(function.record, asked.pool, container, grace_s) as leave:
                return await websocket(link, receive, send, function.record.spec.timeout_s, leave)
        finally:
            route.close()

    async def _link(
        self, function: Function, addressed: Addressed, asked: Asked, receive: Receive
    ) -> tuple[Route, ServerLink | FrameLink]:
        """Apart from the talk, for thousands may be silent for hours: what it was opened with is not kept."""
        pool = await self._pool(function, asked.scope["query_string"])
        sent = forward.scope_of(asked.scope, addressed.root_path, asked.traceparent)
        opening = self._opening(function, asked, sent, RAW if function.is_server else WEBSOCKET)
        wanted = self._wanted(function, pool, asked, forward.first_open(opening))
        route = await unless_left(self._parts.routes, wanted, receive)
        asked.granted(pool.pool, route.upstream)
        asked.headers, asked.scope["headers"] = {}, []
        try:
            return route, ServerLink(route.upstream, sent) if function.is_server else FrameLink(route.upstream)
        except BaseException:
            route.close()
            raise

    # ------------------------------------------------------------------ steps

    def _as_clients_see_it(self, scope: Scope) -> None:
        """Apps make addresses of themselves with the scheme that their clients use."""
        if self._parts.addresses.secure and scope["scheme"] in ("http", "ws"):
            scope["scheme"] += "s"

    async def _function(self, addressed: Addressed) -> Function:
        app = self._parts.directory.web.find(addressed.name)
        if app is None:
            raise NotFoundError(f"there is no web function {addressed.name!r}")
        name, _, method = app.web[addressed.name].partition(".")
        record = await self._parts.directory.function(app.functions[name], app.workspace)
        spec = record.spec.method(method)
        if spec.web is None:
            raise NotFoundError(f"there is no web function {addressed.name!r}")
        return Function(app, record, spec, spec.web)

    async def _authorize(self, function: Function, headers: dict[bytes, bytes]) -> None:
        if function.web.requires_proxy_auth:
            await self._parts.tokens.check_proxy(credentials_of(headers), function.app.workspace)

    async def _pool(self, function: Function, query: bytes) -> PoolRecord:
        """The pool of the parameters in the query. Raises `ResourceExhaustedError` for too many different ones."""
        pools, record = self._parts.pools, function.record
        pool = pool_of(record, parameters_of(record.spec, query))
        if pools.is_ready(pool.pool):
            return pool
        directory = self._parts.directory
        if pool.parameters and directory.pool(pool.pool) is None:
            there = sum(other.function_id == record.function_id for other in directory.pools_of(record.app_id))
            allowance = self._allowed.setdefault(record.function_id, Allowance())
            most = self._parts.settings.web_max_parameter_sets
            if refusal := allowance.take(self._parts.clock.monotonic(), there, most):
                raise refusal
        await pools.ensure(pool)
        return pool

    def _opening(self, function: Function, asked: Asked, sent: dict[str, Any], kind: str) -> dict[str, Any]:
        return {
            "type": kind,
            "method": function.method.name,
            "id": asked.call,
            "traceparent": asked.traceparent,
            "scope": sent,
        }

    def _wanted(
        self, function: Function, pool: PoolRecord, asked: Asked, first: bytes, *, whole: bool = False
    ) -> Wanted:
        settings = self._parts.settings
        session = next((asked.headers[name] for name in _SESSIONS if name in asked.headers), b"")
        return Wanted(
            pool=pool.pool,
            ask={"pool": pool.pool, "id": asked.call, "timeout_s": function.record.spec.timeout_s},
            first=first,
            raw=function.is_server,
            whole=whole,
            repeatable=asked.scope.get("method", "GET") in SAFE,
            hold_s=0.0 if function.web.stateless else settings.web_hold_s,
            max_held=settings.web_max_held,
            app=function.app.name,
            dev=function.app.state != "deployed",
            session=session.decode("latin-1"),
        )


async def unless_left(routes: Routes, wanted: Wanted, receive: Receive) -> Route:
    """A way to a container for a WebSocket. Raises `ClientGone` if its client goes while it waits."""
    await receive()  # websocket.connect
    loop = asyncio.get_running_loop()
    opening, leaving = loop.create_task(routes.open(wanted)), loop.create_task(_next(receive))
    try:
        await asyncio.wait([opening, leaving], return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            raise ClientGone
        return opening.result()
    except BaseException:
        opening.cancel()
        (outcome,) = await asyncio.gather(opening, return_exceptions=True)
        if isinstance(outcome, Route):
            outcome.close()
        raise
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)


async def _next(receive: Receive) -> dict[str, Any]:
    return await receive()


def check_length(header: bytes | None) -> None:
    """Refuse bodies that are too large before anything is read of them."""
    if header is not None and int(header) > forward.MAX_BODY_BYTES:
        raise RequestSizeError(f"a request may have {forward.MAX_BODY_BYTES} bytes, not {int(header)}")
