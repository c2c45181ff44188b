"""WebSockets with a web server in a container: a real server that takes nothing doubtful, asked as the gateway asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import uvicorn
from tests.support.eventually import eventually

from squall.http_api.protocol import frames
from squall_gateway.web.server_socket import ServerLink
from squall_gateway.web.upstream import MAX_MESSAGE_BYTES, Upstream


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Says what it was asked, then echoes; some words are orders."""
    if scope["type"] != "websocket":
        return
    await receive()
    if scope["path"] == "/refuse":
        await send({"type": "websocket.close"})
        return
    offered = scope["subprotocols"]
    await send({"type": "websocket.accept", "subprotocol": offered[-1] if offered else None})
    headers = [f"{name.decode()}: {value.decode()}" for name, value in scope["headers"]]
    await send({"type": "websocket.send", "text": "\n".join([scope["path"], scope["query_string"].decode(), *headers])})
    while (message := await receive())["type"] == "websocket.receive":
        if message.get("text") == "close":
            await send({"type": "websocket.close", "code": 3001, "reason": "asked to"})
        elif message.get("text") == "large":
            await send({"type": "websocket.send", "bytes": b"x" * (MAX_MESSAGE_BYTES + 1)})
        else:
            await send({**message, "type": "websocket.send"})


class Straight:
    """Stands in for the connection through the agent: straight to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.write, self.drain = reader, writer.write, writer.drain

    async def receive_raw(self) -> bytes:
        return await self._reader.read(65536)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="websockets-sansio"))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve())
        await eventually(lambda: server.started, within_s=60)
        yield server.servers[0].sockets[0].getsockname()[1]
        server.should_exit = True


@asynccontextmanager
async def linked(port: int, path: str = "/room", **headers: str) -> AsyncIterator[ServerLink]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    told = {"host": "squares.example", "origin": "http://squares.example", **headers}
    scope = {
        "root_path": "/web/main--app-page",
        "raw_path": f"/web/main--app-page{path}",
        "query_string": "x=1",
        "headers": [(name.replace("_", "-"), value) for name, value in told.items()],
    }
    try:
        yield ServerLink(cast("Upstream", Straight(reader, writer)), scope)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_the_server_gets_the_client_s_request_once_and_may_choose_a_subprotocol(port: int) -> None:
    async with linked(port, sec_websocket_protocol="first, second", cookie="a=b") as link:
        accepted, told = await link.receive(), await link.receive()

    assert accepted is not None
    assert told is not None
    assert accepted.meta["subprotocol"] == "second"
    path, query, *lines = told.payload.decode().splitlines()
    assert (path, query) == ("/room", "x=1")
    assert [line for line in lines if line.startswith("host:")] == ["host: squares.example"]
    assert {"cookie: a=b", "origin: http://squares.example", "x-forwarded-prefix: /web/main--app-page"} <= set(lines)
    assert [line for line in lines if line.startswith("sec-websocket-protocol")] == [
        "sec-websocket-protocol: first, second"
    ]


async def test_messages_go_both_ways_and_the_end_keeps_its_code(port: int) -> None:
    async with linked(port) as link:
        accepted, _ = await link.receive(), await link.receive()
        assert accepted is not None
        assert accepted.meta["subprotocol"] is None
        for kind, data in ((frames.Web.TEXT, "grüezi".encode()), (frames.Web.BINARY, b"\x00\xff" * 100_000)):
            await link.send(kind, {}, data)
            back = await link.receive()
            assert back is not None
            assert (back.kind, back.payload) == (kind, data)
        await link.send(frames.Web.TEXT, {}, b"close")
        end = await link.receive()
    assert end is not None
    assert (end.kind, end.meta) == (frames.Web.CLOSE, {"code": 3001, "reason": "asked to"})


@pytest.mark.parametrize(("path", "order", "code"), [("/refuse", "", 1011), ("/room", "large", 1009)])
async def test_what_cannot_go_on_is_an_end(port: int, path: str, order: str, code: int) -> None:
    async with linked(port, path) as link:
        if order:
            await link.receive()
            await link.receive()
            await link.send(frames.Web.TEXT, {}, order.encode())
        end = await link.receive()
    assert end is not None
    assert (end.kind, end.meta["code"]) == (frames.Web.CLOSE, code)
