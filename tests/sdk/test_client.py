"""The client: connections, resending, strangers, and configuration."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.sdk.fake_gateway import TOKEN, FakeGateway

from squall import config, exception, session
from squall.client import Client, query
from squall.config import ServerAddress
from squall.connection import FileBody, parse_url
from squall.http_api.routes import Route


def test_who_comes_back_to_an_address_asks_anew_what_the_server_there_is(
    gateway: FakeGateway, address: ServerAddress
) -> None:
    with session.use(address) as used:
        assert used.client.info().entries_together
    gateway.takes_entries_together = False
    with session.use(address) as used:
        assert not used.client.info().entries_together


@contextmanager
def answering(*answers: bytes) -> Iterator[tuple[ServerAddress, list[bytes]]]:
    """A server that gives each connection the next of these answers, whatever it is asked."""
    requests: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                requests.append(connection.recv(65536))
                connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield ServerAddress(f"http://127.0.0.1:{listener.getsockname()[1]}", TOKEN), requests
    finally:
        thread.join(5)
        listener.close()


@contextmanager
def client_of(address: ServerAddress) -> Iterator[Client]:
    """A client whose connections are closed after the block."""
    with closing(Client(address)) as client:
        yield client


def whole(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def test_connections_are_kept_and_used_again(gateway: FakeGateway, address: ServerAddress) -> None:
    ports = set()
    with client_of(address) as client:
        for _ in range(5):
            client.json("GET", Route.INFO)
            ports.add(client._idle[0]._sock.getsockname()[1])
    assert len(ports) == 1


def test_a_connection_that_the_server_closed_while_it_was_idle_is_replaced() -> None:
    with answering(whole(b"1"), whole(b"2")) as (address, _), client_of(address) as client:
        assert client.json("GET", "/x") == 1
        assert client.json("GET", "/x") == 2


def test_an_answer_that_is_cut_is_asked_for_again() -> None:
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12"
    with answering(cut, whole(b'"whole"')) as (address, requests), client_of(address) as client:
        assert client.json("GET", "/x") == "whole"
        assert len(requests) == 2


def test_answers_may_be_chunked_preceded_by_continue_or_end_with_the_connection() -> None:
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = head + b"2\r\n12\r\n1\r\n3\r\n0\r\n\r\n"
    until_the_end = b"HTTP/1.0 200 OK\r\n\r\n456"
    with answering(chunked, until_the_end) as (address, _), client_of(address) as client:
        assert client.json("GET", "/x") == 123
        assert client.json("GET", "/x") == 456


def test_a_unix_socket_is_an_address(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(whole(b"7"))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with client_of(ServerAddress(f"unix:{path}", TOKEN)) as client:
        assert client.json("GET", "/x") == 7
    thread.join(5)
    listener.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_makes_its_own_connections(gateway: FakeGateway, address: ServerAddress) -> None:
    with client_of(address) as client:
        client.json("GET", Route.INFO)
        child = os.fork()
        if child == 0:
            try:
                client.json("GET", Route.INFO)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        client.json("GET", Route.INFO)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (whole(b"<html>nginx</html>", "502 Bad Gateway"), exception.ServiceError),
        (whole(b"not here", "404 Not Found"), exception.NotFoundError),
        (whole(b"", "401 Unauthorized"), exception.AuthError),
        (whole(b'{"error": {"code": "storage_full"}}', "507 No Space"), exception.StorageFullError),
    ],
)
def test_errors_are_told_as_the_class_that_they_are(answer: bytes, expected: type[Exception]) -> None:
    with answering(answer, answer) as (address, _):
        with client_of(address) as client, pytest.raises(expected):
            client.json("GET", "/x")
        with socket.create_connection(("127.0.0.1", int(address.url.rpartition(":")[2]))) as rest:
            rest.sendall(b"x")  # whoever did not need the second answer leaves it to us


@pytest.mark.parametrize("status", ["502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout"])
def test_a_proxy_that_lost_its_gateway_is_asked_again(status: str) -> None:
    """The server has answered before, and a repeated request cannot do anything twice."""
    with (
        answering(whole(b"{}"), whole(b"", status), whole(b"<html/>", status), whole(b'{"a": 1}')) as (address, _),
        client_of(address) as client,
    ):
        client.json("GET", "/x")
        assert client.json("GET", "/x") == {"a": 1}


def test_something_that_is_no_http_server_is_a_connection_error() -> None:
    greeting = b"SSH-2.0-OpenSSH_9\r\n"
    with (
        answering(greeting, greeting) as (address, _),
        client_of(address) as client,
        pytest.raises(exception.ConnectionError),
    ):
        client.json("GET", "/x")


def test_another_api_version_is_told_with_both_releases() -> None:
    other = b'{"version": "9.0", "api_version": 9, "region": "r", "shards": 1, "workspace": "w", "environment": "e"}'
    with (
        answering(whole(other)) as (address, _),
        client_of(address) as client,
        pytest.raises(exception.VersionError, match=r"9\.0"),
    ):
        client.info()


def test_a_line_break_cannot_be_smuggled_into_a_header(address: ServerAddress) -> None:
    with client_of(address) as client, pytest.raises(exception.InvalidError):
        client.request("GET", "/x", {"Squall-Function": "a\r\nX-Evil: 1"})


def test_a_damaged_blob_is_never_given_out(gateway: FakeGateway, address: ServerAddress) -> None:
    gateway.blobs["0" * 64] = b"something else"
    parts: list[bytes] = []
    with client_of(address) as client, pytest.raises(exception.DataLossError):
        client.download("0" * 64, parts.append, parts.clear)


def test_query_values_are_escaped() -> None:
    assert query("/v1/x", name="a b&c", none=None, n=1) == "/v1/x?name=a%20b%26c&n=1"


def test_a_refusal_that_comes_before_the_body_was_read_is_told(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    refusal = whole(b'{"error": {"code": "request_size", "message": "too much"}}', "413 Too Large")

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1024)
            connection.sendall(refusal)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    path = tmp_path / "large"
    path.write_bytes(bytes(32_000_000))
    address = ServerAddress(f"http://127.0.0.1:{listener.getsockname()[1]}", TOKEN)
    with client_of(address) as client, path.open("rb") as file, pytest.raises(exception.RequestSizeError):
        client.request("PUT", "/x", body=FileBody(file, 32_000_000))
    thread.join(5)
    listener.close()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://host:port", ""])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(exception.InvalidError):
        parse_url(url)


# --- configuration ---------------------------------------------------------------------------------------------------


def test_the_environment_wins_over_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "config.toml").write_text('# mine\nserver_url = "http://file:1"\ntoken = "t"\nenvironment = "dev"\n')
    assert config.load()[:3] == ("http://file:1", "t", "dev")
    monkeypatch.setenv("SQUALL_SERVER_URL", "http://env:2")
    monkeypatch.setenv("SQUALL_ENVIRONMENT", "prod")
    assert config.load()[:3] == ("http://env:2", "t", "prod")
    assert config.load().address == ServerAddress("http://env:2", "t")


def test_nothing_configured_is_no_address(home: Path) -> None:
    assert config.load().address is None
    assert config.load().environment == "main"


@pytest.mark.parametrize("line", ["colour = 'red'", "token", "token = unquoted"])
def test_a_line_of_the_file_that_means_nothing_is_named(home: Path, line: str) -> None:
    (home / "config.toml").write_text(f"\n{line}\n")
    with pytest.raises(exception.InvalidError, match="line 2"):
        config.load()


def test_the_session_follows_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUALL_SERVER_URL", "http://one:1")
    first = session.current()
    assert session.current() is first
    monkeypatch.setenv("SQUALL_SERVER_URL", "http://two:2")
    assert session.current().client.address.url == "http://two:2"


def test_a_container_without_access_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUALL_CONTAINER", "1")
    with pytest.raises(exception.ExecutionError, match="without access"):
        session.current()
