"""The part of nats-py that we keep, and the part that we replace.

nats-py connects, authenticates, speaks TLS and reconnects. Bytes in and bytes out are ours: its parser, header code
and queue per subscription cost more than everything else together. This module is the only one that touches
nats-py's internals; tests/services/bus/test_reconnects.py and test_connection.py fail when a new nats-py
changes them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, cast

from nats.aio.client import Client
from nats.aio.transport import TcpTransport
from nats.errors import Error as NatsError

from squall_bus.settings import MAX_BUFFERED_BYTES

Deliver = Callable[[bytes, bytes, bytes, bytes], None]
"""subject, reply, header block, data"""

BUNCH_BYTES = 64 * 1024
"""Of one read: after less than that nothing more waits, after more we are behind and go on at once."""


class Sink:
    """One subscription: what nats-py must know to repeat it after a reconnect, and where its messages go."""

    __slots__ = (
        "_max_msgs",
        "_message_iterator",
        "_pending_next_msgs_calls",
        "_queue",
        "_received",
        "_subject",
        "_wait_for_msgs_task",
        "deliver",
        "sid",
    )

    def __init__(self, sid: int, subject: str, queue: str, deliver: Deliver) -> None:
        self.sid = sid
        self.deliver = deliver
        self._subject = subject
        self._queue = queue
        self._max_msgs = 0
        self._received = 0
        self._wait_for_msgs_task = None
        self._message_iterator = None
        self._pending_next_msgs_calls = None


class Parser:
    """Cuts the server's bytes into messages and hands each to its sink. Same face as nats-py's parser."""

    def __init__(self, client: RawClient) -> None:
        self._client = client
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._needed = 0

    def reset(self) -> None:
        self._rest, self._rest_size, self._needed = [], 0, 0

    async def parse(self, data: bytes = b"") -> None:
        """What nats-py's read loop calls; the bytes themselves come through `feed`."""
        self.feed(data)

    def feed(self, data: bytes) -> None:
        """Bytes as they arrive."""
        if self._rest:
            # Joined only when the message is complete: joining after each read of a large one would be quadratic.
            self._rest.append(data)
            self._rest_size += len(data)
            if self._rest_size < self._needed:
                return
            data = b"".join(self._rest)
            self.reset()
        consumed, self._needed = self._consume(data)
        if consumed < len(data):
            self._rest = [data[consumed:]]
            self._rest_size = len(data) - consumed

    def _consume(self, data: bytes) -> tuple[int, int]:
        """How many bytes were used up, and how many are needed to go on."""
        sinks = self._client.sinks
        position = 0
        while (line_end := data.find(b"\r\n", position)) >= 0:
            words = data[position:line_end].split()
            body = line_end + 2
            operation = words[0] if words else b""
            if operation == b"MSG":
                headers_end, end = body, body + int(words[-1])
            elif operation == b"HMSG":
                headers_end, end = body + int(words[-2]), body + int(words[-1])
            else:
                self._client.on_control(operation, data[position:line_end])
                position = body
                continue
            if end + 2 > len(data):
                return position, end + 2 - position
            sink = sinks.get(int(words[2]))
            if sink is not None:
                has_reply = len(words) == (5 if operation == b"MSG" else 6)
                reply = words[3] if has_reply else b""
                sink.deliver(words[1], reply, data[body:headers_end], data[headers_end:end])
            position = end + 2
        return position, 0


class Incoming(asyncio.Protocol):
    """Bytes of one connection straight to the parser; everything else to the stream that nats-py reads from.

    Through the stream each read costs a future, a turn of the loop and a copy more.
    """

    def __init__(
        self, client: RawClient, transport: TcpTransport, pipe: asyncio.Transport, stream: asyncio.Protocol
    ) -> None:
        self._client = client
        self._transport = transport
        self._pipe = pipe
        self._stream = stream

    def data_received(self, data: bytes) -> None:
        if self._client.is_connected and self._client._transport is self._transport:
            self._client.parser.feed(data)  # else what this connection still says no longer counts
        if self._client.pause_s and len(data) < BUNCH_BYTES and not self._pipe.is_closing():
            self._pipe.pause_reading()
            self._client._loop.call_later(self._client.pause_s, self._go_on)

    def _go_on(self) -> None:
        if not self._pipe.is_closing():
            self._pipe.resume_reading()

    def eof_received(self) -> bool | None:
        return self._stream.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stream.connection_lost(exc)

    def pause_writing(self) -> None:
        self._stream.pause_writing()

    def resume_writing(self) -> None:
        self._stream.resume_writing()


class RawClient(Client):
    """A nats-py client whose messages go straight to sinks, and whose writes go straight to the socket."""

    def __init__(
        self, on_lost: Callable[[Exception], None], on_denied: Callable[[str], None], pause_s: float = 0
    ) -> None:
        super().__init__()
        self.pause_s = pause_s
        """After each read the socket is left alone for so long."""
        self._on_denied = on_denied
        self.parser = Parser(self)
        self._ps = self.parser  # type: ignore[assignment]
        self._controls: set[asyncio.Task[None]] = set()
        self._on_lost = on_lost
        self._flush_scheduled = False
        self._socket_backlog = 0
        """Size of the socket's buffer at the last write."""
        self._loop = asyncio.get_running_loop()

    # ------------------------------------------------------------------ in

    async def _read_loop(self) -> None:
        # nats-py's loop goes on reading from the stream, to which only the end of the connection still comes.
        transport = self._transport
        if isinstance(transport, TcpTransport) and transport._io_writer is not None:
            reader, pipe = transport._io_reader, transport._io_writer.transport
            stream = cast("asyncio.Protocol", pipe.get_protocol())
            pipe.set_protocol(Incoming(self, transport, cast("asyncio.Transport", pipe), stream))
            early = bytes(reader._buffer)  # type: ignore[union-attr]
            reader._buffer.clear()  # type: ignore[union-attr]
            self.parser.feed(early)
        await super()._read_loop()

    @property
    def sinks(self) -> dict[int, Sink]:
        return self._subs  # type: ignore[return-value]

    def open_sink(self, subject: str, deliver: Deliver, queue: str = "") -> Sink:
        """Subscribe; repeated by nats-py at each reconnect until it is closed."""
        self._sid += 1
        sink = Sink(self._sid, subject, queue, deliver)
        self.sinks[sink.sid] = sink
        if self.is_connected:
            self.write(b"SUB %b %b %d\r\n" % (subject.encode(), queue.encode(), sink.sid))
        return sink

    def stop_sink(self, sink: Sink) -> None:
        """Tell the server to send no more; what is on its way still reaches the sink until `drop_sink`."""
        if self.is_connected:
            self.write(b"UNSUB %d\r\n" % sink.sid)

    def drop_sink(self, sink: Sink) -> None:
        """Forget the sink: what still comes for it is thrown away, and no reconnect brings it back."""
        self.sinks.pop(sink.sid, None)

    def on_control(self, operation: bytes, line: bytes) -> None:
        """Everything that is not a message."""
        match operation.upper():
            case b"PING":
                self.write(b"PONG\r\n")
            case b"PONG":
                self._on_pong()
            case b"INFO":
                self._start(self._process_info(json.loads(line[5:])))
            case b"-ERR":
                self._start(self._process_err(line[5:].decode("utf-8", "replace").strip().strip("'")))
            case _:
                pass  # +OK, and whatever a newer server may say

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._controls.add(task)
        task.add_done_callback(self._controls.discard)

    def _on_pong(self) -> None:
        self._pings_outstanding = 0
        if self._pongs:
            future = self._pongs.pop(0)
            if not future.done():  # nats-py's own version ends the read loop when the ping was cancelled
                future.set_result(True)

    async def _process_err(self, err_msg: str) -> None:
        # nats-py closes the client for ever on most errors, also when one message was too large or a credential
        # had just expired. A service must come back by itself, and say loudly why it was away.
        if err_msg.lower().startswith("permissions violation"):
            self._on_denied(err_msg)
            return
        error = NatsError(f"nats: {err_msg.lower()}")
        await self._error_cb(error)
        await self._process_op_err(error)

    async def _process_op_err(self, e: Exception) -> None:
        was_connected = self.is_connected
        await super()._process_op_err(e)
        if was_connected and not self.is_connected:
            # Half-written batches and pulls must not reach the next connection: their owners send them again.
            self._pending, self._pending_data_size = [], 0
            self._on_lost(e)

    # ------------------------------------------------------------------ out

    def write(self, command: bytes) -> None:
        """Buffered until the end of this turn of the event loop; kept while disconnected."""
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._write_out)

    def _write_out(self) -> None:
        self._flush_scheduled = False
        if not self._pending or not self.is_connected or self._transport is None:
            return
        pending, self._pending, self._pending_data_size = self._pending, [], 0
        self._transport.write(pending[0] if len(pending) == 1 else b"".join(pending))
        self._socket_backlog = self._socket_buffer()

    def ping(self) -> asyncio.Future[bool]:
        """Done when the server has read everything written before."""
        future: asyncio.Future[bool] = self._loop.create_future()
        self._write_out()
        if self._transport is not None:
            self._pongs.append(future)
            self._transport.write(b"PING\r\n")
        return future

    @property
    def congested(self) -> bool:
        """More waits here and in the socket's buffer than the server has any business leaving there."""
        if self._pending_data_size + self._socket_backlog <= MAX_BUFFERED_BYTES:
            return False
        self._socket_backlog = self._socket_buffer()
        return self._pending_data_size + self._socket_backlog > MAX_BUFFERED_BYTES

    def _socket_buffer(self) -> int:
        transport = self._transport
        if isinstance(transport, TcpTransport) and transport._io_writer is not None:
            return int(transport._io_writer.transport.get_write_buffer_size())
        return 0

    @property
    def info(self) -> dict[str, Any]:
        """What the server said about itself."""
        return self._server_info
