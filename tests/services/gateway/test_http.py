"""HTTP as bytes on a connection: what clients other than ours may send, answered as by any server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import pytest
import pytest_asyncio
from tests.support.eventually import eventually

from squall_gateway.http_cycle import UNREAD_BYTES
from squall_gateway.server import listen, serving

pytestmark = pytest.mark.asyncio

Message = MutableMapping[str, Any]


class Echo:
    """Answers with method, path, query and body. `/hold` reads its body only when it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.received = 0
        self.receive: Any = None

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        self.receive = receive
        if scope["path"] == "/hold":
            await self.go.wait()
        parts, more = [], True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            parts.append(message["body"])
            self.received += len(message["body"])
            more = message["more_body"]
        body = b"%s %s?%s " % (scope["method"].encode(), scope["path"].encode(), scope["query_string"])
        body += b"".join(parts) if len(parts) < 4 else b"%d" % self.received
        headers = [(b"content-length", b"%d" % len(body))]
        if scope["path"] == "/stream":
            headers = []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def echo() -> Echo:
    return Echo()


class Wire:
    """A connection, as bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, *, head_only: bool = False) -> tuple[bytes, bytes]:
        """Head and body of the next answer."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        if head_only or b" 100 " in head:
            return head, b""
        if b"chunked" in head:
            body = b""
            while size := int(await self.reader.readline(), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readline()
            return head, body
        [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        return head, await self.reader.readexactly(int(length[15:]))


@pytest_asyncio.fixture
async def wire(echo: Echo) -> AsyncIterator[Wire]:
    listener = listen("127.0.0.1", 0)
    async with asyncio.timeout(30), serving(echo, listener, 1.0):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        yield Wire(reader, writer)
        writer.close()
        await writer.wait_closed()
    listener.close()


async def test_requests_on_one_connection_are_answered_in_their_order(wire: Wire) -> None:
    wire.send(
        b"GET /a?x=1&y HTTP/1.1\r\nHost: x\r\n\r\nPOST /b%20c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"
        b"abcGET /d HTTP/1.1\r\nHost: x\r\n\r\n"
    )

    bodies = [(await wire.answer())[1] for _ in range(3)]

    assert bodies == [b"GET /a?x=1&y ", b"POST /b c? abc", b"GET /d? "]


async def test_an_absolute_url_and_a_fragment_are_understood(wire: Wire) -> None:
    wire.send(b"GET http://somewhere/a?b HTTP/1.1\r\nHost: Somewhere\r\n\r\n")
    assert (await wire.answer())[1] == b"GET /a?b "
    wire.send(b"GET /a?b#c HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await wire.answer())[1] == b"GET /a?b "


async def test_a_body_may_come_in_pieces_and_in_chunks(wire: Wire) -> None:
    wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nab")
    await wire.writer.drain()
    wire.send(b"cdef")
    assert (await wire.answer())[1] == b"POST /? abcdef"
    wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert (await wire.answer())[1] == b"POST /? abcde"


async def test_a_client_that_asks_before_it_sends_is_told_to_go_on(wire: Wire) -> None:
    wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    head, _ = await wire.answer()
    assert head == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.send(b"ab")
    assert (await wire.answer())[1] == b"POST /? ab"


async def test_an_answer_without_a_length_comes_in_chunks(wire: Wire) -> None:
    wire.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
    head, body = await wire.answer()
    assert b"transfer-encoding: chunked" in head
    assert body == b"GET /stream? "


async def test_head_has_no_body_and_the_connection_goes_on(wire: Wire) -> None:
    wire.send(b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _ = await wire.answer(head_only=True)
    assert b"content-length: 9" in head
    wire.send(b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await wire.answer())[1] == b"GET /b? "


@pytest.mark.parametrize(
    "request_head", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]
)
async def test_a_connection_is_closed_for_who_says_so(wire: Wire, request_head: bytes) -> None:
    wire.send(request_head)
    head, body = await wire.answer()
    assert b"connection: close" in head
    assert body == b"GET /? "
    assert await wire.reader.read() == b""


@pytest.mark.parametrize(
    "nonsense", [b"nonsense\r\n\r\n", b"GET \xff HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n: x\r\n\r\n"]
)
async def test_what_is_not_http_is_refused_and_the_connection_closed(wire: Wire, nonsense: bytes) -> None:
    wire.send(nonsense)
    head, _ = await wire.answer(head_only=True)
    assert head.startswith(b"HTTP/1.1 400 ")
    await wire.reader.read()
    assert wire.reader.at_eof()


async def test_of_a_body_that_nobody_reads_only_a_part_is_taken(wire: Wire, echo: Echo) -> None:
    body = b"x" * (32 * UNREAD_BYTES)
    wire.send(b"POST /hold HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    transport = wire.writer.transport
    stuck = [-1, 0]

    def stands_still() -> bool:
        stuck[:] = [stuck[1], transport.get_write_buffer_size()]
        return stuck[0] == stuck[1]

    await eventually(stands_still, every_s=0.2)
    assert stuck[1] > len(body) // 4  # the rest is in buffers of the kernel, and a little in the server:
    assert echo.receive.__self__.unread < UNREAD_BYTES // 2

    echo.go.set()
    assert (await wire.answer())[1] == b"POST /hold? %d" % len(body)


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
SOCKET = b"GET /s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
async def test_the_body_of_who_asks_for_another_protocol_is_a_body_and_no_request(wire: Wire, protocol: bytes) -> None:
    head = b"POST /up HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: %d\r\n\r\n"
    wire.send(head % (protocol, len(SMUGGLED)) + SMUGGLED[:5])
    await wire.writer.drain()
    wire.send(SMUGGLED[5:] + b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await wire.answer())[1] == b"POST /up? " + SMUGGLED
    assert (await wire.answer())[1] == b"GET /next? "


async def test_who_asks_for_another_protocol_often_and_at_once_is_answered_as_often(wire: Wire) -> None:
    wire.send(b"GET /up HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" * 300)
    assert {(await wire.answer())[1] for _ in range(300)} == {b"GET /up? "}


async def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended = asyncio.Event()

    async def reader(scope: Message, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        while (await receive())["type"] == "http.request":
            pass
        try:
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"the body is not whole"})
        finally:
            ended.set()

    listener = listen("127.0.0.1", 0)
    async with asyncio.timeout(30), serving(reader, listener, 1.0):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"PUT /x HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nsome")
        await writer.drain()
        writer.close()
        await ended.wait()
    assert "KeyError" not in caplog.text


async def test_a_websocket_that_cannot_be_opened_is_refused_and_leaves_nothing(wire: Wire) -> None:
    wire.send(SOCKET + KEY + b"Cookie: " + b"c" * 10_000 + b"\r\n\r\n")
    assert (await wire.reader.read()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("head", [b"GET http://other/a HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/2.0\r\n\r\n"])
async def test_a_request_for_two_hosts_or_of_another_version_is_refused(wire: Wire, head: bytes) -> None:
    wire.send(head)
    assert (await wire.reader.read()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "behind",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n",
        SOCKET + KEY + b"\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_what_is_wrong_behind_a_request_is_not_taken_for_its_answer(
    wire: Wire, echo: Echo, behind: bytes
) -> None:
    wire.send(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n" + behind)
    assert await wire.reader.read() == b""
    echo.go.set()


async def test_who_sends_line_ends_keeps_no_connection_for_ever(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("squall_gateway.http_protocol.HEAD_S", 0.1)
    wire.send(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
    await wire.answer()
    wire.send(b"\r\n")
    assert await wire.reader.read() == b""


async def test_connections_send_at_once_what_is_short() -> None:
    """Else an answer whose head and body are written apart waits for the client's system to acknowledge its head."""
    at_once: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at_once.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with listen("127.0.0.1", 0) as listener:
        async with await asyncio.start_server(accepted, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            try:
                assert await asyncio.wait_for(at_once, 60)
            finally:
                writer.close()
