"""Calls in JSON, on their way in: what a request says, as a call of the call path. Accepts nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Annotated, NamedTuple

from fastapi import Depends, Header, Query, Request

from squall.http_api.protocol import Header as HeaderName
from squall.http_api.protocol import blob_ref
from squall.ids import is_sampled, new_call_id
from squall.spec import INLINE_LIMIT_BYTES, Encoding, Kind
from squall_contracts import spans
from squall_gateway import json_bodies
from squall_gateway.accept import Acceptor, Input
from squall_gateway.api.functions import functions_of
from squall_gateway.api.requests import exchange_of, workspace_of
from squall_gateway.bodies import whole
from squall_gateway.call_headers import CallHeaders, check_idempotency_key
from squall_gateway.call_spans import now_ns
from squall_gateway.directory import Directory
from squall_gateway.json_bodies import MAX_BODY_BYTES, JsonCall
from squall_gateway.targets import Target, Targets

Environment = Annotated[str, Query(description="Of the app, where it is named and not given by id.")]
Version = Annotated[int | None, Query(ge=1, description="An earlier version of a deployed app.")]
Key = Annotated[
    str,
    Header(
        alias=HeaderName.IDEMPOTENCY_KEY,
        description="For 24 h the same key with the same body is the same call; with another body a 409.",
    ),
]
Traceparent = Annotated[str, Header(description="W3C trace context: the call becomes a part of that trace.")]


class Place(NamedTuple):
    """What path, query and headers of a request say."""

    app: str
    function: str
    environment: str
    version: int | None
    key: str
    traceparent: str


def place(  # what FastAPI fills in
    app: str,
    function: str,
    environment: Environment = "main",
    version: Version = None,
    idempotency_key: Key = "",
    traceparent: Traceparent = "",
) -> Place:
    """The place of a request."""
    key = check_idempotency_key(idempotency_key)
    return Place(app, function, environment, version, key, spans.checked_traceparent(traceparent))


At = Annotated[Place, Depends(place)]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, checked: which call of which function."""

    call: CallHeaders
    target: Target
    body: JsonCall
    received_ns: int
    parent_span: str
    """Of the caller's own trace."""

    def about(self, call: CallHeaders) -> Asked:
        """The same request about the call that has its key."""
        return replace(self, call=call._replace(traceparent=within(self.call.traceparent, call.call)))


def within(traceparent: str, call: str) -> str:
    """The header by which a call's span `call`, which no SDK makes here, becomes a part of a caller's trace; empty
    where there is none: then the call begins one."""
    trace_id, _ = spans.parse_traceparent(traceparent)
    if not trace_id:
        return ""
    return spans.traceparent(trace_id, spans.span_id(call, 0, "", spans.CALL), is_sampled(traceparent))


@dataclass(frozen=True, slots=True)
class JsonRequests:
    """Reads and checks requests."""

    acceptor: Acceptor
    targets: Targets
    directory: Directory

    async def asked(self, request: Request, at: Place, kind: Kind, fields: Sequence[str]) -> Asked:
        """The call that a request asks for. Raises what is wrong with it."""
        exchange, workspace = exchange_of(request), workspace_of(request)
        received_ns = now_ns(self.acceptor.clock)
        body = await json_bodies.read(await whole(exchange.receive, MAX_BODY_BYTES), fields)
        known = await self.directory.find_app(at.app, workspace, at.environment)
        functions = functions_of(known.record, at.version)
        named = json_bodies.named(at.function, functions, known.record.name)
        record = await self.directory.function(functions[named.function], workspace)
        json_bodies.check_method(record.spec, named.method)
        call_id = new_call_id(self.acceptor.bus.topology.shards)
        call = CallHeaders(
            call=call_id,
            app=record.app_id,
            function=named.function,
            function_id="" if at.version is None else record.function_id,
            method=named.method,
            parameters=json_bodies.class_parameters(record.spec, body.parameters),
            kind=kind,
            encoding=Encoding.JSON.value,
            blob=None,
            parent=None,
            traceparent=within(at.traceparent, call_id),
            sent_ns=None,
            idempotency_key=at.key,
            webhook=body.webhook,
        )
        target = await self.targets.of(call, workspace)
        if target.is_generator and kind is Kind.REMOTE:
            call = call._replace(kind=Kind.GENERATOR)
        return Asked(call, target, body, received_ns, spans.parse_traceparent(at.traceparent)[1])

    async def input(self, asked: Asked, index: int, payload: bytes) -> Input:
        """An input; a large one goes to the blob store first, as the SDK does it."""
        if len(payload) <= INLINE_LIMIT_BYTES:
            return Input(index, payload)
        digest = sha256(payload).hexdigest()
        await self.acceptor.blobs.of(asked.target.function.workspace).put(digest, _once(payload))
        return Input(index, b"", blob_ref(digest, len(payload)))


async def _once(payload: bytes) -> AsyncGenerator[bytes, None]:
    yield payload
