"""/v1/apps/{app}/functions/{function}/call, /spawn and /map: calls in JSON, for callers that have no SDK.

The same calls as the SDK's: same records, same limits, same traces; the gateway is their client."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from squall.errors import InvalidError
from squall.http_api.protocol import Header
from squall.http_api.routes import Route
from squall.spec import Kind
from squall_contracts import spans
from squall_gateway.accept import Acceptor, Input
from squall_gateway.api.json_outputs import JsonOutputRoutes, Wait, whole_json
from squall_gateway.api.requests import NDJSON, exchange_of
from squall_gateway.call_spans import SERVICE, Accepted, now_ns, trace_of
from squall_gateway.caller_spans import CallerSpans
from squall_gateway.generators import Generators, StreamForm
from squall_gateway.idempotency import IdempotencyKeys
from squall_gateway.json_answers import JsonValues, error_line, line
from squall_gateway.json_bodies import CALL_FIELDS, MAP_FIELDS
from squall_gateway.json_requests import Asked, At, JsonRequests
from squall_gateway.metrics import Requests
from squall_gateway.openapi_json import ACCEPTED, CALL_BODY, CALL_RESULTS, LINES, MAP_BODY, SPAWN_BODY
from squall_gateway.waits import Waits
from squall_service.failpoints import failpoint


class Streamed(Response):
    """An answer that something else writes."""

    def __init__(self, write: Callable[[], Coroutine[Any, Any, None]]) -> None:
        super().__init__()
        self._write = write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._write()


@dataclass(frozen=True, slots=True)
class JsonCallRoutes:
    """Takes calls in JSON."""

    requests: JsonRequests
    outputs: JsonOutputRoutes
    acceptor: Acceptor
    waits: Waits
    generators: Generators
    keys: IdempotencyKeys
    counts: Requests
    caller_spans: CallerSpans
    values: JsonValues

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["calls in JSON"], default_response_class=Response)
        router.post(Route.FUNCTION_CALL, responses=CALL_RESULTS, openapi_extra=CALL_BODY)(self.call)
        router.post(Route.FUNCTION_SPAWN, responses=ACCEPTED, openapi_extra=SPAWN_BODY, status_code=202)(self.spawn)
        router.post(Route.FUNCTION_MAP, responses=LINES, openapi_extra=MAP_BODY)(self.map)
        return router

    # ------------------------------------------------------------------ one call

    async def call(self, request: Request, at: At, wait: Wait = 55.0) -> Response:
        """Call a function and answer with its result; a generator's items come as lines while it yields them.

        The function is named as in its app, a method of a class as `Class.method`. With no result within `wait`
        seconds the answer is 202 with the path to ask again; the call goes on.
        """
        asked = await self.requests.asked(request, at, Kind.REMOTE, CALL_FIELDS)
        given = await self.requests.input(asked, 0, asked.body.payloads[0])
        if asked.call.idempotency_key:
            claim = await self.keys.claim(asked.call, asked.target, given)
            if claim.accepted:
                return await self.outputs.wait_for(request, claim.call.call, 0, wait)
            asked = asked.about(claim.call)
        if asked.call.kind is Kind.GENERATOR:
            return Streamed(lambda: self._generate(request, asked, given))
        return await self._accept_and_wait(request, asked, given, wait)

    async def _accept_and_wait(self, request: Request, asked: Asked, given: Input, seconds: float) -> Response:
        call, target = asked.call, asked.target
        wait = self.waits.open(call.call, 0, target.function.workspace)
        try:
            accepted = await self._accept(asked, given, wait.reply_to)
            if accepted.duplicate:
                await wait.look()
            outcome = await wait.result(seconds, exchange_of(request).receive)
        finally:
            await wait.close()
        self._trace(asked, accepted)
        return await self.outputs.answered(call.call, 0, target.pool.pool, outcome)

    async def _accept(self, asked: Asked, given: Input, reply_to: str | None) -> Accepted:
        accepted = await self.acceptor.accept(
            asked.call, asked.target, given, reply_to=reply_to, received_ns=asked.received_ns
        )
        failpoint("gateway.accepted")
        if not accepted.duplicate:
            self.counts.accepted[asked.call.kind.value] += 1
        return accepted

    def _trace(self, asked: Asked, accepted: Accepted) -> None:
        """The gateway's spans of a call, and `call` itself: there is no SDK that would send it."""
        if not accepted.trace.sampled:
            return
        attributes: dict[str, Any] = {"span_id": accepted.trace.parent_id, "function": asked.call.function}
        if asked.parent_span:
            attributes["parent_span_id"] = asked.parent_span
        ended = now_ns(self.acceptor.clock)
        root = spans.row(spans.CALL, "", SERVICE, asked.received_ns, ended, **attributes)
        self.caller_spans.hold(accepted.batch(asked.call.call, [root]))

    async def _generate(self, request: Request, asked: Asked, given: Input) -> None:
        form = StreamForm(
            headers=NDJSON,
            keepalive=lambda _: b"\n",
            on_error=error_line,
            of=lambda stream: self.values.lines(asked.call.call, asked.target.function.workspace, stream),
        )
        exchange = exchange_of(request)
        await self.generators.answer(exchange, asked.call, asked.target, given, asked.received_ns, form)

    # ------------------------------------------------------------------ in the background, and many inputs

    async def spawn(self, request: Request, at: At) -> Response:
        """Make a call, or one with many `inputs`, and answer as soon as it is stored: it goes on by itself.

        Its result is kept for 7 days, under the path in `output` (or `outputs`).
        """
        asked = await self.requests.asked(request, at, Kind.SPAWN, (*CALL_FIELDS, "inputs"))
        if asked.body.many:
            await self._accept_all(asked)
            return spawned(asked.call.call, len(asked.body.payloads), many=True)
        given = await self.requests.input(asked, 0, asked.body.payloads[0])
        if asked.call.idempotency_key:
            claim = await self.keys.claim(asked.call, asked.target, given)
            if claim.accepted:
                return spawned(claim.call.call, 1)
            asked = asked.about(claim.call)
        self._trace(asked, await self._accept(asked, given, None))
        return spawned(asked.call.call, 1)

    async def map(self, request: Request, at: At) -> Response:
        """Call a function once for each of `inputs`; results come as lines as they are there, with their index.

        The first line has the id of the call and the number of inputs, the last one is `{"done": true, ...}`; empty
        lines mean that nothing happened. After a break go on with `/v1/calls/{call}/outputs?cursor=` and the `cursor`
        of the last line.
        """
        asked = await self.requests.asked(request, at, Kind.MAP, MAP_FIELDS)
        await self._accept_all(asked)
        return self.outputs.lines(request, asked.call.call, len(asked.body.payloads), 0)

    async def _accept_all(self, asked: Asked) -> None:
        """All inputs, or none."""
        call = asked.call
        if call.idempotency_key:
            raise InvalidError(
                f"{Header.IDEMPOTENCY_KEY} is for single calls, not for many inputs",
                fix="Leave the header out, or make one call for each key.",
            )
        given = [
            await self.requests.input(asked, number, payload) for number, payload in enumerate(asked.body.payloads)
        ]
        taken = await self.acceptor.accept_many(call, asked.target, given, asked.received_ns)
        failpoint("gateway.accepted")
        self.counts.accepted[call.kind.value] += taken
        written, trace = now_ns(self.acceptor.clock), trace_of(call, self.acceptor.trace_ratio)
        self._trace(asked, Accepted(False, trace, (asked.received_ns, written, written)))


def spawned(call: str, inputs: int, *, many: bool = False) -> Response:
    """The answer about a call that goes on by itself."""
    name, route = ("outputs", Route.CALL_OUTPUTS) if many else ("output", Route.CALL_OUTPUT)
    return whole_json(202, line({"call": call, "inputs": inputs, name: route.format(call=call)}).rstrip())
