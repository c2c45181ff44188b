"""Requests of a service to the gateway's HTTP API. Blocking, one connection each."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO
from urllib.parse import SplitResult, urlsplit

from squall.errors import ServiceError, from_wire

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60.0


@contextlib.contextmanager
def asked(
    url: str, method: str, path: str, body: BinaryIO | None, headers: Mapping[str, str], what: str
) -> Iterator[http.client.HTTPResponse]:
    """The answer, whatever its status. Raises `ServiceError` when there is none; `what` is for that."""
    parts = urlsplit(url)
    connection = _connection(parts)
    prefix = "" if parts.scheme == "unix" else parts.path.rstrip("/")
    try:
        connection.request(method, prefix + path, body, dict(headers))
        yield connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise ServiceError(f"{what} at the gateway failed: {error!r}") from error
    finally:
        connection.close()


def get_json(url: str, path: str, token: str) -> Any:
    """GET in the name of a token's owner. Raises the error of the answer, or `ServiceError`."""
    return _json(url, "GET", path, token, None)


def post_json(url: str, path: str, token: str, body: Any) -> Any:
    """POST likewise."""
    return _json(url, "POST", path, token, json.dumps(body).encode())


def _json(url: str, method: str, path: str, token: str, body: bytes | None) -> Any:
    what, headers = f"{method} {path}", {"Authorization": f"Bearer {token}"}
    if body is not None:
        headers |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    with asked(url, method, path, None if body is None else io.BytesIO(body), headers, what) as answer:
        said = answer.read()
        if answer.status < 300:
            return json.loads(said)
        try:
            error = from_wire(json.loads(said)["error"])
        except (ValueError, KeyError, TypeError):
            raise ServiceError(f"{what}: the gateway answered {answer.status}: {said[:200]!r}") from None
        raise error


def is_there(url: str, path: str, token: str) -> bool:
    """HEAD in the name of a token's owner. Raises `ServiceError` when there is no answer."""
    with asked(url, "HEAD", path, None, {"Authorization": f"Bearer {token}"}, f"HEAD {path}") as answer:
        answer.read()
        return answer.status < 300


def _connection(url: SplitResult) -> http.client.HTTPConnection:
    if url.scheme == "unix":
        return _UnixConnection(url.path)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    return kind(url.hostname or "127.0.0.1", url.port, timeout=TIMEOUT_S, blocksize=CHUNK_BYTES)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S, blocksize=CHUNK_BYTES)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)
