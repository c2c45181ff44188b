"""The client of the gateway: the only place of the SDK that sends requests.

Owns connections (kept alive, shared by threads), resending after a break, and the translation of answers that are
errors. Every request of the API may be sent twice: calls carry their id, everything else is a read or a replacement.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from typing import Any, Callable, NamedTuple, Optional
from urllib.parse import quote

from squall import __version__
from squall.blocking import current_abort, sleep
from squall.config import ServerAddress
from squall.connection import CHUNK_BYTES, Body, Connection, Response, parse_url, request_head
from squall.errors import (
    AuthError,
    ConnectionError,
    DataLossError,
    InvalidError,
    NotFoundError,
    RequestSizeError,
    ServiceError,
    SquallError,
    VersionError,
    from_wire,
)
from squall.http_api.protocol import Header, ServerInfo, blob_ref, frames
from squall.http_api.routes import API_VERSION, Route
from squall.spec import from_wire as spec_from_wire
from squall.unimplemented import NO_CLIENT, missing_classmethods

RECONNECT_S = 60.0
"""How long a server that answered before may be away (a gateway restart) before a request fails."""
READ_TIMEOUT_S = 60.0
STREAM_TIMEOUT_S = 30.0
"""Streams say something every 5 s; after this they count as broken."""
ASK_FIRST_BYTES = 4 * 1024 * 1024
"""Larger blobs are uploaded only if they are not there yet; asking costs as much as sending a few MiB."""
IDLE_CONNECTIONS = 64
NO_HEADERS: Mapping[str, str] = {}
BROKEN = (OSError, HTTPException, EOFError)
"""What a connection raises that broke."""
PROXY_ALONE = frozenset((502, 503, 504))
"""What a proxy answers while it reaches no gateway; the same with a body of squall's is the gateway's word."""


class Answer(NamedTuple):
    """A complete answer."""

    status: int
    fields: Mapping[str, str]
    body: bytes


class Client:
    """Requests to one gateway. Thread-safe; survives a fork (the child opens its own connections)."""

    def __init__(self, address: ServerAddress, *, patient: bool = False) -> None:
        """`patient`: wait for the server even if it never answered (in a container it was there a moment ago)."""
        self.address = address
        self._endpoint = parse_url(address.url)
        self._patient = patient
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._ssl_context: Optional[object] = None
        self._info: Optional[ServerInfo] = None
        self._answered = False
        self.lost = False
        """The server was away for longer than requests are repeated: it may be somewhere else now."""
        host = "localhost" if self._endpoint.scheme == "unix" else f"{self._endpoint.host}:{self._endpoint.port}"
        self._common = (
            f"Host: {host}\r\nAuthorization: Bearer {address.token}\r\n{Header.CLIENT_VERSION}: {__version__}\r\n"
        )

    # --- requests ---

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] = NO_HEADERS,
        body: Body = b"",
        timeout_s: float = READ_TIMEOUT_S,
    ) -> Answer:
        """One request and its whole answer, sent again while the connection breaks. Raises the error of the answer."""
        retry = Retry(self)
        while True:
            try:
                with self._exchange(method, path, headers, body, timeout_s) as response:
                    answer = Answer(response.status, response.fields, response.read())
            except BROKEN as error:
                retry.wait(error)
                continue
            self.lost = False
            if answer.status < 400:
                self._answered = True
                return answer
            error_told = error_of(answer)
            if not (isinstance(error_told, ServiceError) and error_told.retryable and retry.again()):
                raise error_told

    def json(self, method: str, path: str, body: Any = None, timeout_s: float = READ_TIMEOUT_S) -> Any:
        """A request with JSON both ways."""
        data = b"" if body is None else json.dumps(body).encode()
        answer = self.request(method, path, {"Content-Type": "application/json"}, data, timeout_s)
        return json.loads(answer.body) if answer.body else None

    def once(self, method: str, path: str, body: Any, timeout_s: float) -> None:
        """A request with JSON that is not repeated; raises `OSError` or the error of the answer."""
        self.attempt(method, path, {"Content-Type": "application/json"}, json.dumps(body).encode(), timeout_s)

    def attempt(self, method: str, path: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Answer:
        """A request that is not repeated, and its whole answer; raises `OSError` or the error of the answer."""
        try:
            with self._exchange(method, path, headers, body, timeout_s) as response:
                answer = Answer(response.status, response.fields, response.read())
        except (HTTPException, EOFError) as error:
            raise OSError(str(error)) from error
        if answer.status >= 400:
            raise error_of(answer)
        return answer

    @contextlib.contextmanager
    def stream(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] = NO_HEADERS,
        body: Body = b"",
        timeout_s: float = STREAM_TIMEOUT_S,
    ) -> Iterator[Stream]:
        """An answer that is read while it arrives. Opening it is repeated, a break later on raises one of `BROKEN`."""
        retry = Retry(self)
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    response = stack.enter_context(self._exchange(method, path, headers, body, timeout_s))
                    if response.status < 400:
                        self._answered = True
                        break
                    error = error_of(Answer(response.status, response.fields, response.read()))
                except BROKEN as broken:
                    retry.wait(broken)
                    continue
                if not (isinstance(error, ServiceError) and error.retryable and retry.again()):
                    raise error
            yield Stream(response)

    def info(self) -> ServerInfo:
        """What the server said about itself; asked once."""
        if self._info is None:
            info = spec_from_wire(ServerInfo, self.json("GET", Route.INFO))
            if info.api_version != API_VERSION:
                raise VersionError(
                    f"the server {self.address.url} is squall {info.version} (API {info.api_version}), "
                    f"this is squall {__version__} (API {API_VERSION})"
                )
            self._info = info
        return self._info

    # --- blobs ---

    def upload(self, sha256: str, body: Body, route: str = Route.BLOB) -> str:
        """Store a blob, or a block of a volume; its reference."""
        size = len(body) if isinstance(body, bytes) else body.size
        path = route.format(sha256=sha256)
        if size <= ASK_FIRST_BYTES or not self._has(path):
            self.request("PUT", path, {"Content-Type": "application/octet-stream"}, body)
        return blob_ref(sha256, size)

    def _has(self, path: str) -> bool:
        try:
            self.request("HEAD", path)
        except NotFoundError:
            return False
        return True

    def download(
        self, sha256: str, write: Callable[[bytes], Any], restart: Callable[[], Any], route: str = Route.BLOB
    ) -> None:
        """Read a blob, or a block of a volume, into `write`; `restart` is called when it begins anew. Raises
        `DataLossError` for damage."""
        retry = Retry(self)
        while True:
            digest = hashlib.sha256()
            restart()
            try:
                with self.stream("GET", route.format(sha256=sha256), timeout_s=READ_TIMEOUT_S) as stream:
                    for chunk in stream.chunks(CHUNK_BYTES):
                        digest.update(chunk)
                        write(chunk)
            except BROKEN as error:
                retry.wait(error)
                continue
            if digest.hexdigest() != sha256:
                raise DataLossError(
                    f"blob {sha256} arrived damaged", fix="Call again; look at the server's blob store."
                )
            return

    # --- connections ---

    @contextlib.contextmanager
    def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: Body, timeout_s: float
    ) -> Iterator[Response]:
        """Send one request; the connection is kept if the block reads the whole answer."""
        length = len(body) if isinstance(body, bytes) else body.size
        head = request_head(method, self._endpoint.prefix + path, self._common, headers, length)
        connection = self._take()
        abort = current_abort()
        if abort is not None:
            abort.add(connection.abort)
        keep, response = False, None
        try:
            response = _send_and_receive(connection, method, head, body, timeout_s)
            yield response
            keep = response.isclosed() and not response.will_close
        finally:
            if abort is not None:
                abort.remove(connection.abort)
            if keep:
                self._give_back(connection)
            else:
                if response is not None:
                    response.close()  # its file keeps the socket open
                connection.close()

    def _take(self) -> Connection:
        if self._pid != os.getpid():
            self._idle, self._pid, self._lock = [], os.getpid(), threading.Lock()
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return Connection(self._endpoint, self._tls())
            if connection.usable():
                return connection
            connection.close()

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            if len(self._idle) < IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()

    def _tls(self) -> Optional[object]:
        if self._endpoint.scheme != "https":
            return None
        if self._ssl_context is None:
            import ssl

            self._ssl_context = ssl.create_default_context()
        return self._ssl_context

    @property
    def patience_s(self) -> float:
        """How long a request is repeated: a server that never answered is probably not there."""
        return RECONNECT_S if self._patient or self._answered else 0.0

    def close(self) -> None:
        """Close idle connections, and forget what the server said: another one may have its address next."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._info = None
        for connection in idle:
            connection.close()


def _send_and_receive(connection: Connection, method: str, head: bytes, body: Body, timeout_s: float) -> Response:
    try:
        connection.send(head, body, timeout_s)
    except (BrokenPipeError, ConnectionResetError) as broken:
        try:
            # A server that refuses a large body answers and hangs up before it has read all of it.
            refusal = connection.receive(method)
        except BROKEN:
            raise broken from None
        if refusal.status < 400:
            raise
        return refusal
    return connection.receive(method)


class Retry:
    """How often and how fast one request is repeated."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._until: Optional[float] = None
        self._delay_s = 0.0

    def wait(self, error: BaseException) -> None:
        """Wait before the next try, or raise `ConnectionError` because there is none."""
        if not self.again():
            self._client.lost = True
            url = self._client.address.url
            raise ConnectionError(f"no connection to {url}: {str(error) or type(error).__name__}") from error

    def again(self) -> bool:
        """Wait and say yes, or say no."""
        abort = current_abort()
        if abort is not None:
            abort.check()
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._client.patience_s
        elif now + self._delay_s >= self._until or not self._client.patience_s:
            return False
        # The first repetition is immediate: it is for connections that the server closed while they were idle.
        sleep(self._delay_s)
        self._delay_s = min(1.0, max(0.05, self._delay_s * 2))
        return True

    def progress(self) -> None:
        """Something was answered: the clock starts again."""
        self._until, self._delay_s = None, 0.0


class Stream:
    """An answer that is read while it arrives."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self.status = response.status
        self.fields = response.fields

    def chunks(self, size: int = 1 << 16) -> Iterator[bytes]:
        """Its bytes as they come."""
        response = self._response
        while True:
            chunk = response.read1(size)
            if not chunk:
                if response.length:  # read1 does not notice an answer that is cut
                    raise EOFError("the connection closed in the middle of an answer")
                response.read()
                return
            yield chunk

    def frames(self) -> Iterator[list[frames.Frame]]:
        """Its frames, as many at once as arrived together. Ends only with one of `BROKEN` if the last one is cut."""
        decoder = frames.Decoder()
        for chunk in self.chunks():
            ready = decoder.feed(chunk)
            if ready:
                yield ready
        if decoder.pending_bytes:
            raise EOFError("the stream ended in the middle of a frame")

    def lines(self) -> Iterator[dict[str, Any]]:
        """Its JSON lines."""
        rest = b""
        for chunk in self.chunks():
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                if line.strip():
                    yield json.loads(line)
        if rest.strip():
            yield json.loads(rest)

    def read(self) -> bytes:
        """All of it."""
        return self._response.read()


_BY_STATUS: Mapping[int, type[SquallError]] = {401: AuthError, 404: NotFoundError, 413: RequestSizeError}


def error_of(answer: Answer) -> SquallError:
    """The error in an answer; a stranger's answer (a proxy, another server on that port) is told as it is."""
    try:
        body = json.loads(answer.body)["error"]
        return from_wire(body)
    except (ValueError, KeyError, TypeError):
        text = answer.body[:200].decode("utf-8", "replace").strip()
        if answer.status in PROXY_ALONE:
            return ServiceError(
                f"a proxy answered {answer.status} in place of the server: {text or 'nothing'}",
                fix="Look at the gateways behind it; SQUALL_SERVER_URL is the address that was asked.",
            )
        cls = _BY_STATUS.get(answer.status, ServiceError if answer.status >= 500 else InvalidError)
        return cls(
            f"the server answered {answer.status}: {text or 'nothing'}",
            fix="Check that SQUALL_SERVER_URL is the address of a squall gateway.",
        )


for _name, _missing in missing_classmethods(
    "Client", dict.fromkeys(("from_env", "from_credentials", "anonymous", "verify"), NO_CLIENT)
).items():
    setattr(Client, _name, _missing)


def query(path: str, **values: Any) -> str:
    """`path` with a query string of the values that are not None."""
    pairs = [f"{name}={quote(str(value), safe='')}" for name, value in values.items() if value is not None]
    return f"{path}?{'&'.join(pairs)}" if pairs else path
