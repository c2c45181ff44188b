"""The edge: what every request goes through. Ids, tokens, errors as answers, counts; then the route.

Routes of the call path are plain functions found by their path, everything else is FastAPI's. FastAPI costs about
0.15 ms a request (middleware, matching, validation), half of what a whole warm call may cost here.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from itertools import count
from typing import Any

from squall.errors import InternalError, NotFoundError, PermissionDeniedError, SquallError
from squall.http_api.protocol import Header
from squall_contracts.functions import TokenRecord
from squall_gateway.answers import Send, error_body, error_headers, public, send_whole
from squall_gateway.auth import CALLER, CONTAINER, Tokens
from squall_gateway.bodies import ClientGone
from squall_gateway.call_headers import check_client_version
from squall_gateway.condition import Condition
from squall_gateway.metrics import Requests
from squall_gateway.waits import Receive
from squall_gateway.web.addresses import API_PREFIX
from squall_gateway.web.cross_origin import ANYBODY
from squall_gateway.web.door import WebDoor
from squall_gateway.web.forward import Cut
from squall_gateway.webhooks.containers import ContainerHooks
from squall_service.telemetry import log

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

REQUEST_ID = b"x-request-id"
TOKEN = "squall.token"
REQUEST = "squall.request"
WEB_ROUTE = "/web"
VERSION = version("squall")
_OWN_VERSION = VERSION.encode()
_OPTIONS = Header.OPTIONS.lower().encode()
_WEBHOOK = Header.WEBHOOK.lower().encode()


@dataclass(slots=True)
class Exchange:
    """One request and its answer, as far as the edge is concerned."""

    scope: Scope
    receive: Receive
    _send: Send
    id: str
    headers: dict[bytes, bytes]
    """By lower-case name."""
    token: TokenRecord
    status: int = 0
    """0 until the answer began."""
    route: str = ""
    """Which route of the call path it is."""

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """ASGI's send, with our header."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (REQUEST_ID, self.id.encode())]
        await self._send(message)

    @property
    def query(self) -> bytes:
        """After the question mark."""
        text: bytes = self.scope["query_string"]
        return text


Handler = Callable[[Exchange, str], Awaitable[None]]
"""Gets the exchange and the id in its path, of a call, a dict or a queue (empty if there is none)."""

_WITH_IDS = ("/v1/calls/", "/v1/dicts/", "/v1/queues/")
NOBODY = TokenRecord(workspace="", name="", scope="", created_at=0.0)


class Edge:
    """The ASGI application."""

    def __init__(  # noqa: PLR0913 — what it puts together
        self,
        tokens: Tokens,
        condition: Condition,
        requests: Requests,
        hot: dict[tuple[str, str], Handler],
        rest: App,
        web: WebDoor | None = None,
        hooks: ContainerHooks | None = None,
    ) -> None:
        self._tokens = tokens
        self._condition = condition
        self._requests = requests
        self._hot = hot
        """By method and path; `*` stands for a call id."""
        self._rest = rest
        self._web = web
        self._hooks = hooks
        self._prefix = secrets.token_hex(4)
        self._numbers = count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await self._connect(scope, receive, send)
            return
        number = next(self._numbers)
        exchange = Exchange(scope, receive, send, f"{self._prefix}-{number:x}", dict(scope["headers"]), NOBODY)
        scope[REQUEST] = exchange
        try:
            await self._answer(exchange)
        except ClientGone:
            pass  # nobody reads an answer
        except Cut as error:
            log.warning("answer_cut", request=exchange.id, reason=str(error))
            raise  # the server closes the connection without the end of the answer
        except SquallError as error:
            await self._refuse(exchange, public(error))
        except Exception as error:
            log.error("request_failed", request=exchange.id, path=scope["path"], error=error)
            if exchange.status:
                raise  # too late for an answer: the connection is closed
            await self._refuse(exchange, InternalError(f"request {exchange.id} failed"))
        finally:
            self._requests.count(exchange.route or _fastapi_route(scope), exchange.status)
            if self._web is not None and exchange.route == WEB_ROUTE:
                self._web.ended(scope, exchange.status)

    async def _connect(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket: only web functions have any."""
        number, status = f"{self._prefix}-{next(self._numbers):x}", 0
        try:
            asked = dict(scope["headers"])
            addressed = self._web and (self._web.addressed(scope, asked) or self._web.astray_socket(scope, asked))
            if not self._web or not addressed:
                raise NotFoundError(f"there is no WebSocket at {scope['path']}")
            accepted = await self._web.connect(addressed, scope, receive, send)
            status = HTTPStatus.SWITCHING_PROTOCOLS if accepted else HTTPStatus.FORBIDDEN
        except ClientGone:
            pass
        except SquallError as error:
            told = public(error)
            status = told.http_status
            headers = [*error_headers(told), (REQUEST_ID, number.encode())]
            await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
            await send({"type": "websocket.http.response.body", "body": error_body(told, number)})
        finally:
            self._requests.count(WEB_ROUTE, status)
            if self._web is not None:
                self._web.ended(scope, status)

    async def _answer(self, exchange: Exchange) -> None:
        if self._web and (addressed := self._web.addressed(exchange.scope, exchange.headers)):
            exchange.route = WEB_ROUTE
            await self._web.answer(addressed, exchange.scope, exchange.receive, exchange.send)
            return
        if self._web and (location := self._web.astray(exchange.scope, exchange.headers)):
            exchange.route = WEB_ROUTE
            # With its method and body. Not answered here: cookies of the app's pages go to their own paths only.
            told = [(b"location", location), (b"cache-control", b"no-store")]
            await send_whole(exchange.send, HTTPStatus.TEMPORARY_REDIRECT, b"", told)
            return
        path: str = exchange.scope["path"]
        if path.startswith(API_PREFIX):
            check_client_version(exchange.headers, _OWN_VERSION)
            self._condition.require_bus()
            method: str = exchange.scope["method"]
            exchange.token = await self._tokens.check(exchange.headers.get(b"authorization"), method, path)
            if exchange.token.scope == CALLER and _OPTIONS in exchange.headers:
                raise PermissionDeniedError(
                    f"a token of scope {CALLER!r} makes calls as they are declared, without options",
                    fix="Use a token of the scope 'workspace', or declare another function.",
                )
            if exchange.token.scope == CONTAINER and _WEBHOOK in exchange.headers and self._hooks:
                await self._hooks.check(exchange.token)
        pattern, call = split_path(path)
        handler = self._hot.get((exchange.scope["method"], pattern))
        if handler is not None:
            exchange.route = pattern
            await handler(exchange, call)
            return
        exchange.scope[TOKEN] = exchange.token
        await self._rest(exchange.scope, exchange.receive, exchange.send)

    async def _refuse(self, exchange: Exchange, error: SquallError) -> None:
        if exchange.status:
            log.warning("answer_broken", request=exchange.id, code=error.code, reason=error.message)
            raise error
        headers = error_headers(error)
        if exchange.route == WEB_ROUTE:
            headers.append(ANYBODY)  # a page of another origin may read why
        await send_whole(exchange.send, error.http_status, error_body(error, exchange.id), headers)


def _fastapi_route(scope: Scope) -> str:
    """The pattern that matched; never the path itself, which anybody could make up."""
    return str(getattr(scope.get("route"), "path", "other"))


def split_path(path: str) -> tuple[str, str]:
    """`/v1/calls/fc-1/result` as `/v1/calls/*/result` and `fc-1`."""
    if path.startswith(_WITH_IDS):
        kind, _, rest = path[4:].partition("/")
        found, slash, rest = rest.partition("/")
        return f"/v1/{kind}/*{slash}{rest}", found
    return path, ""
