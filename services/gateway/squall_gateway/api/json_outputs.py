"""/v1/calls/{call}/output and /outputs: results of calls in JSON, waited for, asked for again, or as lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from squall.errors import SquallError
from squall.http_api.routes import Route
from squall_contracts.calls import CallResult
from squall_gateway.answers import JSON
from squall_gateway.api.requests import Lines, exchange_of, workspace_of
from squall_gateway.bodies import MAX_WAIT_S
from squall_gateway.feeds import Feed
from squall_gateway.json_answers import JsonValues, line, wire_of
from squall_gateway.load import Loads
from squall_gateway.openapi_json import LINES, OUTPUT
from squall_gateway.results import Results
from squall_gateway.waiting import Waiting
from squall_gateway.waits import NoResult, Waits

CLIENT_GONE = 499
"""As proxies count it."""
Wait = Annotated[
    float, Query(ge=0, le=MAX_WAIT_S, description="Seconds to wait for the result; then the answer is 202.")
]


@dataclass(frozen=True, slots=True)
class JsonOutputRoutes:
    """Answers with results."""

    waits: Waits
    results: Results
    waiting: Waiting
    loads: Loads
    values: JsonValues
    draining: asyncio.Event

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["calls in JSON"])
        router.get(Route.CALL_OUTPUT, response_class=Response, responses=OUTPUT)(self.output)
        router.get(Route.CALL_OUTPUTS, response_class=Response, responses=LINES)(self.outputs)
        return router

    async def output(
        self,
        request: Request,
        call: str,
        index: Annotated[int, Query(ge=0, le=10_000_000, description="Input of a call with many.")] = 0,
        wait: Wait = 0.0,
    ) -> Response:
        """The result of a call that was made in JSON, from whichever request: 200, the failure, or 202 for not yet."""
        return await self.wait_for(request, self.results.check(call), index, wait)

    async def wait_for(self, request: Request, call: str, index: int, seconds: float) -> Response:
        """The answer about an input that was accepted before, by whichever gateway."""
        workspace = workspace_of(request)
        wait = self.waits.open(call, index, workspace)
        try:
            await wait.look()
            pool = "" if wait.future.done() else await self.results.pool_of(call, index, workspace)
            outcome = await wait.result(seconds, exchange_of(request).receive)
        finally:
            await wait.close()
        return await self.answered(call, index, pool, outcome)

    async def answered(self, call: str, index: int, pool: str, outcome: bytes | NoResult) -> Response:
        """The answer to whoever waited. Raises the failure of the call."""
        if outcome is NoResult.GONE:
            return Response(status_code=CLIENT_GONE)  # nobody reads it; the call goes on
        if isinstance(outcome, NoResult):
            told = {"call": call, "waiting": self.waiting.text(pool), "output": Route.CALL_OUTPUT.format(call=call)}
            return whole_json(202, line(told).rstrip())
        record = CallResult.decode(outcome)
        self.loads.ended(record.pool or pool)
        head = b'{"call":"%s","index":%d,' % (call.encode(), index)
        return whole_json(200, head + await self.values.result(record) + b"}")

    async def outputs(
        self,
        request: Request,
        call: str,
        cursor: Annotated[int, Query(ge=0, le=1 << 60, description="Go on after the line that had it.")] = 0,
    ) -> Response:
        """The results of a call with many inputs, as lines, until all inputs have ended."""
        inputs = await self.results.inputs(self.results.check(call), workspace_of(request))
        return self.lines(request, call, inputs, cursor)

    def lines(self, request: Request, call: str, inputs: int, cursor: int) -> Response:
        """The answer that tells the results of so many inputs."""
        feed = Feed(exchange_of(request), self.draining)
        return Lines(feed, self._lines(call, workspace_of(request), inputs, cursor))

    async def _lines(self, call: str, workspace: str, inputs: int, cursor: int) -> AsyncGenerator[bytes, None]:
        yield line({"call": call, "inputs": inputs})
        left = inputs - (await self.results.count_until(call, workspace, cursor) if cursor else 0)
        if left > 0:
            async with self.results.follow(call, workspace, cursor) as records:
                async for stored in records:
                    record = CallResult.decode(stored.data)
                    self.loads.ended(record.pool)
                    yield await self._line(record, stored.seq)
                    left -= 1
                    if left <= 0:
                        break
        yield line({"done": True, "inputs": inputs})

    async def _line(self, record: CallResult, cursor: int) -> bytes:
        try:
            value = await self.values.result(record)
        except SquallError as error:
            return line({"index": record.index, "cursor": cursor, "error": wire_of(error)})
        return b'{"index":%d,"cursor":%d,%s}\n' % (record.index, cursor, value)


def whole_json(status: int, body: bytes) -> Response:
    """A complete answer."""
    return Response(body, status, media_type=JSON[1].decode())
