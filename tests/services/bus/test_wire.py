"""Bytes: what goes out parses again, what comes in pieces is put together."""

from __future__ import annotations

import pytest

from squall_bus import wire
from squall_bus.client import Parser, RawClient, Sink


def test_headers_survive_the_way_out_and_in() -> None:
    headers = {"a": "1", "traceparent": "00-abc-def-01", "empty": "", "colon": "a:b", "umlaut": "größe"}
    assert wire.parse_headers(wire.header_block(headers)) == headers


def test_one_header_is_found_without_parsing_the_others() -> None:
    block = wire.header_block({"Nats-Msg-Id-X": "wrong", "Nats-Msg-Id": "right", "x": "Nats-Msg-Id: fake"})
    assert wire.header_of(block, b"Nats-Msg-Id") == b"right"
    assert wire.header_of(block, b"missing") is None


def test_a_status_is_not_a_header() -> None:
    block = b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 3\r\nNats-Pending-Bytes: 0\r\n\r\n"
    assert wire.status_of(block) == 408
    assert wire.description_of(block) == "Request Timeout"
    assert wire.header_of(block, b"Nats-Pending-Messages") == b"3"
    assert wire.status_of(b"NATS/1.0\r\na: b\r\n\r\n") == 0


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1s"), (1, "1s"), (1.1, "2s"), (3600, "3600s")])
def test_ttls_are_whole_seconds_rounded_up(seconds: float, text: str) -> None:
    assert wire.ttl_text(seconds) == text


def test_server_times_become_unix_seconds() -> None:
    assert wire.unix_time("1970-01-01T00:00:01.5Z") == 1.5
    assert wire.unix_time("2026-08-21T14:50:11.123456789Z") == pytest.approx(1787323811.123456789)
    assert wire.unix_time("1970-01-02T00:00:00Z") == 86400


class Recorder(RawClient):
    """A client without a connection that writes down what the parser gives it."""

    def __init__(self) -> None:
        super().__init__(lambda _: None, lambda _: None)
        self._status = RawClient.CONNECTED
        self.got: list[tuple[bytes, bytes, bytes, bytes]] = []
        self.sinks[1] = Sink(1, ">", "", lambda *parts: self.got.append(parts))


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 100_000])
async def test_messages_cut_anywhere_are_put_together(piece: int) -> None:
    headers = b"NATS/1.0\r\nk: v\r\n\r\n"
    stream = (
        b"MSG a.b 1 5\r\nhello\r\n"
        b"PING\r\n"
        b"MSG a.c 1 reply.to 0\r\n\r\n"
        + b"HMSG a.d 1 reply.to %d %d\r\n%bbody\r\n" % (len(headers), len(headers) + 4, headers)
        + b"MSG unknown 99 2\r\nxx\r\n"
        + b"HMSG a.e 1 %d %d\r\n%b\r\n" % (len(headers), len(headers), headers)
        + b"+OK\r\nMSG a.f 1 6\r\n\r\n\r\n\r\n\r\n"
    )
    client = Recorder()
    parser = Parser(client)
    for start in range(0, len(stream), piece):
        await parser.parse(stream[start : start + piece])

    assert client.got == [
        (b"a.b", b"", b"", b"hello"),
        (b"a.c", b"reply.to", b"", b""),
        (b"a.d", b"reply.to", headers, b"body"),
        (b"a.e", b"", headers, b""),
        (b"a.f", b"", b"", b"\r\n\r\n\r\n"),
    ]


def test_the_parts_of_nats_py_that_we_lean_on_are_there() -> None:
    """A new nats-py that renames them must be noticed here and not in production."""
    from nats.aio.client import Client
    from nats.aio.transport import TcpTransport

    client = Client()
    for name in ("_ps", "_subs", "_sid", "_pending", "_pending_data_size", "_pongs", "_pings_outstanding", "_status"):
        assert hasattr(client, name), name
    for name in ("_process_err", "_process_op_err", "_process_info", "_attempt_reconnect"):
        assert callable(getattr(Client, name)), name
    assert hasattr(TcpTransport(), "_io_writer")  # type: ignore[no-untyped-call]
