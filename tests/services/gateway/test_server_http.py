"""Answers of web servers in containers: whatever they send, one answer comes out, framed once."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, cast

import pytest

from squall.errors import WebFunctionError
from squall_gateway.web.server_http import ServerExchange
from squall_gateway.web.upstream import Upstream

pytestmark = pytest.mark.asyncio


class Said:
    """An upstream on which a web server has said this."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = [*pieces, b""]

    async def receive_raw(self) -> bytes:
        return self._pieces.pop(0)


async def passed_on(*pieces: bytes) -> list[MutableMapping[str, Any]]:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body is sent")

    scope = {"method": "GET", "headers": []}
    await ServerExchange(cast("Upstream", Said(*pieces)), receive, send, body_sent=True, scope=scope).read_answer()
    return sent


@pytest.mark.parametrize("size", [1, 1000])
async def test_a_second_answer_behind_the_first_adds_nothing_to_it(size: int) -> None:
    said = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    said += b"HTTP/1.1 404 Not Found\r\ncontent-length: 30\r\nset-cookie: a=1\r\n\r\nabc"

    head, *rest = await passed_on(*(said[start : start + size] for start in range(0, len(said), size)))

    assert (head["status"], head["headers"]) == (200, [(b"content-length", b"2")])
    assert b"".join(message["body"] for message in rest) == b"ok"
    assert [message["more_body"] for message in rest][-1] is False


async def test_a_trailer_is_no_header() -> None:
    said = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nset-cookie: a=1\r\n\r\n"
    head, *_ = await passed_on(said)
    assert head["headers"] == []


async def test_a_status_that_no_client_knows_is_refused() -> None:
    with pytest.raises(WebFunctionError, match="999"):
        await passed_on(b"HTTP/1.1 999 X\r\ncontent-length: 0\r\n\r\n")
