"""POST /v1/spawns: spawned calls that several threads of a client made at the same time. A plain function, see
`squall_gateway.edge`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import NamedTuple

from squall.errors import InvalidError
from squall.http_api.protocol import FrameKind, Header, frames
from squall.http_api.routes import Route
from squall.spec import Kind
from squall_gateway.accept import Acceptor, Input
from squall_gateway.answers import send_json
from squall_gateway.bodies import parts, whole
from squall_gateway.call_headers import CallHeaders, RawHeaders, read_call_headers, sent_ns
from squall_gateway.call_spans import Accepted, now_ns
from squall_gateway.caller_spans import CallerSpans
from squall_gateway.edge import Exchange
from squall_gateway.metrics import Requests
from squall_gateway.pinning import Pinning
from squall_gateway.targets import Target
from squall_service.failpoints import failpoint

MAX_BODY_BYTES = frames.MAX_FRAME_BYTES + frames.HEADER.size


class Write(NamedTuple):
    """Calls that are admitted together."""

    target: Target
    calls: list[CallHeaders]
    given: list[Input]


@dataclass(frozen=True, slots=True)
class SpawnRoutes:
    """Takes calls whose callers wait for the acknowledgement only."""

    acceptor: Acceptor
    targets: Pinning
    requests: Requests
    caller_spans: CallerSpans

    async def post(self, exchange: Exchange, _: str) -> None:
        """Accept all calls of the body; repeating it changes nothing."""
        received_ns = now_ns(self.acceptor.clock)
        body = await whole(exchange.receive, MAX_BODY_BYTES)
        asked = read_spawned(exchange.headers, body, self.acceptor.bus.topology.shards)
        writes = await self._writes(asked, exchange.token.workspace)
        outcomes = await asyncio.gather(
            *(self._accept(write, received_ns) for write in writes),
            return_exceptions=True,
        )
        failpoint("gateway.accepted")
        for write, accepted in zip(writes, outcomes, strict=True):
            if isinstance(accepted, BaseException):
                raise accepted  # after all were tried
            self._keep(write.calls, accepted)
        await send_json(exchange.send, 200, {"accepted": len(asked)})

    async def _writes(self, asked: list[tuple[CallHeaders, Input]], workspace: str) -> list[Write]:
        """All have one target, but in a repeated request some may belong to an earlier version."""
        writes: dict[str, Write] = {}
        for call, given in sorted(asked, key=lambda each: each[0].call[-2:]):
            target = await self.targets.of(call, workspace)
            write = writes.setdefault(target.pool.pool, Write(target, [], []))
            write.calls.append(call)
            write.given.append(given)
        return list(writes.values())

    async def _accept(self, write: Write, received_ns: int) -> list[Accepted]:
        return await self.acceptor.accept_together(write.calls, write.target, write.given, received_ns=received_ns)

    def _keep(self, calls: list[CallHeaders], accepted: list[Accepted]) -> None:
        for call, each in zip(calls, accepted, strict=True):
            self.requests.accepted[Kind.SPAWN.value] += not each.duplicate
            if each.trace.sampled:
                self.caller_spans.hold(each.batch(call.call, []))


def read_spawned(headers: RawHeaders, body: bytes, shards: int) -> list[tuple[CallHeaders, Input]]:
    """The calls in a SPAWNED frame. Raises `InvalidError`, `RequestSizeError`."""
    try:
        found = frames.Decoder().feed(body)
    except frames.BadFrame as error:
        raise InvalidError(f"the body is not a frame: {error}") from error
    if len(found) != 1 or found[0].kind != FrameKind.SPAWNED:
        raise InvalidError("the body is not one whole SPAWNED frame")
    payloads, own = parts(found[0]), found[0].meta.get("calls")
    if not isinstance(own, list) or len(own) != len(payloads) or not own:
        raise InvalidError("a SPAWNED frame needs `calls`, one for each of `sizes`")
    return [(_call(headers, each, shards), Input(0, payload)) for each, payload in zip(own, payloads, strict=True)]


def _call(headers: RawHeaders, own: object, shards: int) -> CallHeaders:
    match own:
        case [str(call), str(traceparent), str(sent)]:
            said = read_call_headers(headers, shards, call)
        case _:
            raise InvalidError(f"not a call of its id, traceparent and times of sending: {own!r}"[:300])
    if said.kind is not Kind.SPAWN or said.blob or said.idempotency_key:
        raise InvalidError(
            f"only calls of kind spawn, without {Header.BLOB} and {Header.IDEMPOTENCY_KEY}, come together",
            fix=f"Make the others with POST {Route.CALLS}.",
        )
    return said._replace(traceparent=traceparent, sent_ns=sent_ns(sent))
