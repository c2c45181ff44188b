"""One HTTP/1.1 connection: TCP, TLS or a unix socket; request bytes out, response in.

Owns the socket. Knows nothing of squall's API. Built on http.client's response (lengths, chunks), with the two parts
replaced that cost 100 us of every request: the header writer, and the header parser, which is the one for e-mail.
"""

from __future__ import annotations

import http.client
import select
import socket
from collections.abc import Iterable, Mapping
from typing import IO, NamedTuple, Optional, Union
from urllib.parse import urlsplit

from squall.errors import InvalidError

CONNECT_TIMEOUT_S = 10.0
CHUNK_BYTES = 1 << 20
JOIN_BYTES = 64 * 1024
"""So much of a body is sent together with its head; to copy all of a large one would cost more than sending it."""
MAX_HEADERS = 100


class FileBody(NamedTuple):
    """A request body that is read from the start of a file while it is sent."""

    file: IO[bytes]
    size: int


Body = Union[bytes, FileBody]


class Endpoint(NamedTuple):
    """Where to connect to."""

    scheme: str
    """"http", "https" or "unix"."""
    host: str
    """Host name, or path of the socket."""
    port: int
    prefix: str
    """Path in front of every route."""


def parse_url(url: str) -> Endpoint:
    """The endpoint of a server URL. Raises `InvalidError` for anything else."""
    if url.startswith("unix:"):
        return Endpoint("unix", url[len("unix:") :], 0, "")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _bad_url(url) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _bad_url(url)
    return Endpoint(
        parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80), parts.path.rstrip("/")
    )


def _bad_url(url: str) -> InvalidError:
    return InvalidError(
        f"{url!r} is not the URL of a server",
        fix="Set SQUALL_SERVER_URL to http://host:port, https://host:port or unix:/path.",
    )


class Response(http.client.HTTPResponse):
    """A response whose `fields` are its headers by lower-case name."""

    fields: dict[str, str]

    def begin(self) -> None:
        """Read the status line and the headers."""
        version, status, reason = self._read_status()  # type: ignore[attr-defined]
        while status == 100:
            self._read_fields()
            version, status, reason = self._read_status()  # type: ignore[attr-defined]
        self.code = self.status = status
        self.reason = reason.strip()
        self.version = 10 if version == "HTTP/1.0" else 11
        self.fields = fields = self._read_fields()
        self.chunked = fields.get("transfer-encoding", "").lower() == "chunked"
        self.chunk_left = None
        self.will_close = self.version == 10 or fields.get("connection", "").lower() == "close"
        self.length = None if self.chunked or "content-length" not in fields else int(fields["content-length"])
        if status in (204, 304) or self._method == "HEAD":  # type: ignore[attr-defined]
            self.length = 0
        if self.length is None and not self.chunked:
            self.will_close = True

    def _read_fields(self) -> dict[str, str]:
        fields: dict[str, str] = {}
        while True:
            line = self.fp.readline(65537)
            if line in (b"\r\n", b"\n"):
                return fields
            if not line or len(fields) > MAX_HEADERS:
                raise http.client.IncompleteRead(line)
            name, _, value = line.partition(b":")
            fields[name.decode("latin-1").lower()] = value.strip().decode("latin-1")


class Connection:
    """A socket and at most one request on it."""

    def __init__(self, endpoint: Endpoint, ssl_context: Optional[object] = None) -> None:
        self.fresh = True
        """Nothing was answered on it yet."""
        self._sock = _connect(endpoint, ssl_context)
        self._timeout_s: Optional[float] = None

    def send(self, head: bytes, body: Body, timeout_s: float) -> None:
        """Write one request; `timeout_s` holds for every read and write until the next one."""
        if timeout_s != self._timeout_s:
            self._sock.settimeout(timeout_s)
            self._timeout_s = timeout_s
        if isinstance(body, bytes):
            self._sock.sendall(head + body[:JOIN_BYTES])  # one packet, where it fits into one
            if len(body) > JOIN_BYTES:
                self._sock.sendall(memoryview(body)[JOIN_BYTES:])
            return
        self._sock.sendall(head)
        body.file.seek(0)
        for chunk in _chunks(body):
            self._sock.sendall(chunk)

    def receive(self, method: str) -> Response:
        """The response's head; the rest is read from it."""
        response = Response(self._sock, method=method)
        try:
            response.begin()
        except BaseException:
            response.close()  # its file keeps the socket open
            raise
        self.fresh = False
        return response

    def usable(self) -> bool:
        """Whether an idle connection is still open: a byte or an end of file that waits means that it is not."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not poll.poll(0)

    def abort(self) -> None:
        """Wake up whoever reads or writes here; from any thread."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # not connected any more

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def request_head(method: str, path: str, common: str, headers: Mapping[str, str], length: int) -> bytes:
    """The bytes before a body. `common` is lines that every request has."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    text = f"{method} {path} HTTP/1.1\r\n{common}{lines}Content-Length: {length}\r\n\r\n"
    if text.count("\n") != common.count("\n") + len(headers) + 3:
        raise InvalidError(
            "a header of the request contains a line break", fix="Remove line breaks from names and tokens."
        )
    return text.encode("latin-1", "replace")


def _connect(endpoint: Endpoint, ssl_context: Optional[object]) -> socket.socket:
    if endpoint.scheme == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(CONNECT_TIMEOUT_S)
        try:
            sock.connect(endpoint.host)
        except BaseException:
            sock.close()
            raise
        return sock
    sock = socket.create_connection((endpoint.host, endpoint.port), CONNECT_TIMEOUT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if ssl_context is None:
        return sock
    wrapped: socket.socket = ssl_context.wrap_socket(sock, server_hostname=endpoint.host)  # type: ignore[attr-defined]
    return wrapped


def _chunks(body: FileBody) -> Iterable[bytes]:
    left = body.size
    while left:
        chunk = body.file.read(min(CHUNK_BYTES, left))
        if not chunk:
            raise EOFError("the file became shorter while it was sent")
        left -= len(chunk)
        yield chunk
