"""The headers that describe a call: read once, checked, nothing looked up."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from squall.errors import InvalidError, RequestSizeError, VersionError
from squall.http_api import MAX_HEADER_PARAMETERS_BYTES, Header, parse_blob_ref
from squall.ids import check_call_id
from squall.spec import Encoding, Kind

_METHOD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}|")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENCODINGS = frozenset(encoding.value for encoding in Encoding)
_KINDS = {kind.value.encode(): kind for kind in Kind}

(_CALL, _FUNCTION, _FUNCTION_ID, _METHOD_NAME, _PARAMETERS, _KIND, _ENCODING, _BLOB, _PARENT, _SENT, _TRACEPARENT) = (
    name.lower().encode()
    for name in (
        Header.CALL,
        Header.FUNCTION,
        Header.FUNCTION_ID,
        Header.METHOD,
        Header.PARAMETERS,
        Header.KIND,
        Header.ENCODING,
        Header.BLOB,
        Header.PARENT,
        Header.SENT,
        Header.TRACEPARENT,
    )
)
_CLIENT_VERSION = Header.CLIENT_VERSION.lower().encode()

RawHeaders = Iterable[tuple[bytes, bytes]]


class CallHeaders(NamedTuple):
    """What the caller says about a call."""

    call: str
    app: str
    function: str
    function_id: str
    """The version it is pinned to; empty = the app's present one."""
    method: str
    parameters: str
    kind: Kind
    encoding: str
    blob: str | None
    parent: str | None
    traceparent: str
    sent_ns: tuple[int, int] | None
    """When encoding of the arguments began and ended, by the caller's clock."""


def read_call_headers(raw: RawHeaders, shards: int, call: str | None = None) -> CallHeaders:
    """The headers of a request. `call` is the id of the path where it stands there. Raises `InvalidError`."""
    found = dict(raw)
    app, function = _target(found)
    kind = _KINDS.get(found.get(_KIND, b"remote"))
    if kind is None:
        raise InvalidError(f"{Header.KIND} {_text(found, _KIND)!r} is not one of {[k.value for k in Kind]}")
    encoding = _text(found, _ENCODING) or "pickle"
    if encoding not in _ENCODINGS:
        raise InvalidError(f"{Header.ENCODING} {encoding!r} is not one of {sorted(_ENCODINGS)}")
    method = _text(found, _METHOD_NAME)
    if not _METHOD.fullmatch(method):
        raise InvalidError(f"{Header.METHOD} {method!r} is not a name")
    parameters = _text(found, _PARAMETERS)
    if len(parameters) > MAX_HEADER_PARAMETERS_BYTES:
        raise RequestSizeError(f"class parameters of {len(parameters)} bytes; at most {MAX_HEADER_PARAMETERS_BYTES}")
    blob, parent = _text(found, _BLOB), _text(found, _PARENT)
    return CallHeaders(
        call=check_shard(call if call is not None else _text(found, _CALL), shards),
        app=app,
        function=function,
        function_id=_text(found, _FUNCTION_ID),
        method=method,
        parameters=parameters,
        kind=kind,
        encoding=encoding,
        blob=check_blob_ref(blob) if blob else None,
        parent=check_call_id(parent) if parent else None,
        traceparent=_text(found, _TRACEPARENT),
        sent_ns=_sent(_text(found, _SENT)),
    )


def check_shard(call: str, shards: int) -> str:
    """`call` itself. Raises `InvalidError` if it is not a call id of this cluster."""
    if int(check_call_id(call)[-2:]) >= shards:
        raise InvalidError(
            f"call id {call} is on shard {call[-2:]}, this cluster has {shards} shards",
            fix="Ask GET /v1/info for the number of shards before making ids.",
        )
    return call


def check_blob_ref(ref: str) -> str:
    """`ref` itself. Raises `InvalidError` if it is not `<sha256>:<bytes>`."""
    digest, _, size = ref.partition(":")
    if not _SHA256.fullmatch(digest) or not size.isdigit():
        raise InvalidError(f"blob reference {ref!r} is not <sha256>:<bytes>")
    return ref


def blob_size(ref: str | None) -> int:
    """Bytes behind a checked reference."""
    return parse_blob_ref(ref)[1] if ref else 0


def check_client_version(raw: RawHeaders, server: str) -> None:
    """Raises `VersionError` for a client of another major release (or another 0.x)."""
    for name, value in raw:
        if name == _CLIENT_VERSION:
            client = value.decode("latin-1")
            if client != server and _generation(client) != _generation(server):
                raise VersionError(f"client {client} and server {server} are of different releases")


def _generation(version: str) -> list[str]:
    parts = version.split(".")
    return parts[:2] if parts[0] == "0" else parts[:1]


def _target(found: dict[bytes, bytes]) -> tuple[str, str]:
    app, slash, function = _text(found, _FUNCTION).partition("/")
    if not app or not slash or not function:
        raise InvalidError(f"{Header.FUNCTION} must be <app id>/<function name>, got {_text(found, _FUNCTION)!r}")
    return app, function


def _text(found: dict[bytes, bytes], name: bytes) -> str:
    value = found.get(name)
    return "" if value is None else value.decode("latin-1")


def _sent(text: str) -> tuple[int, int] | None:
    start, _, end = text.partition(":")
    if start.isdigit() and end.isdigit() and int(start) <= int(end):
        return int(start), int(end)
    return None  # only the trace needs it: nothing is refused for it
