"""What the FastAPI routes share: whose request it is, and streamed answers."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from squall import errors
from squall.errors import SquallError
from squall_contracts.functions import TokenRecord
from squall_gateway.answers import public
from squall_gateway.edge import REQUEST, TOKEN, Exchange
from squall_gateway.feeds import Feed

NDJSON = ((b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store"))
BLANK = b"\n"


def workspace_of(request: Request) -> str:
    """The workspace of the request's token."""
    token: TokenRecord = request.scope[TOKEN]
    return token.workspace


def error_line(error: SquallError) -> bytes:
    """The last line of a stream that broke."""
    return json.dumps({"error": errors.to_wire(public(error))}, default=str).encode() + b"\n"


class Lines(Response):
    """A streamed answer of JSON lines, with blank ones while nothing happens."""

    def __init__(self, feed: Feed, lines: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        self._feed = feed
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._feed.run(self._lines, NDJSON, lambda: BLANK, error_line)


def exchange_of(request: Request) -> Exchange:
    """The edge's view of the request."""
    exchange: Exchange = request.scope[REQUEST]
    return exchange
