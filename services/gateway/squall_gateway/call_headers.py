"""The headers that describe a call: read once, checked, nothing looked up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from squall.errors import InvalidError, RequestSizeError, VersionError
from squall.http_api.protocol import (
    MAX_HEADER_OPTIONS_BYTES,
    MAX_HEADER_PARAMETERS_BYTES,
    MAX_IDEMPOTENCY_KEY_CHARS,
    Header,
    parse_blob_ref,
)
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
_IDEMPOTENCY_KEY = Header.IDEMPOTENCY_KEY.lower().encode()
_OPTIONS = Header.OPTIONS.lower().encode()
_WEBHOOK = Header.WEBHOOK.lower().encode()
_CLIENT_VERSION = Header.CLIENT_VERSION.lower().encode()

RawHeaders = Mapping[bytes, bytes]
"""By lower-case name, as they came."""


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
    idempotency_key: str = ""
    options: str = ""
    """What of the declaration is different for this call."""
    webhook: str = ""
    """In place of the function's."""


def read_call_headers(found: RawHeaders, shards: int, call: str | None = None) -> CallHeaders:
    """The headers of a request. `call` is the id of the path where it stands there. Raises `InvalidError`."""
    get = found.get
    named = _named(get(_FUNCTION), get(_FUNCTION_ID), get(_METHOD_NAME), get(_PARAMETERS), get(_KIND), get(_ENCODING))
    blob, parent = _text(get(_BLOB)), _text(get(_PARENT))
    return CallHeaders(
        check_shard(call if call is not None else _text(get(_CALL)), shards),
        *named,
        check_blob_ref(blob) if blob else None,
        check_call_id(parent) if parent else None,
        _text(get(_TRACEPARENT)),
        sent_ns(_text(get(_SENT))),
        check_idempotency_key(_text(get(_IDEMPOTENCY_KEY))),
        _options(get(_OPTIONS)),
        _text(get(_WEBHOOK)),
    )


@lru_cache(maxsize=10_000)
def _named(
    function: bytes | None,
    function_id: bytes | None,
    method: bytes | None,
    parameters: bytes | None,
    kind: bytes | None,
    encoding: bytes | None,
) -> tuple[str, str, str, str, str, Kind, str]:
    """The fields of `CallHeaders` from `app` to `encoding`. Raises `InvalidError`."""
    app, slash, name = _text(function).partition("/")
    if not app or not slash or not name:
        raise InvalidError(f"{Header.FUNCTION} must be <app id>/<function name>, got {_text(function)!r}")
    found_kind = _KINDS.get(kind or b"remote")
    if found_kind is None:
        raise InvalidError(f"{Header.KIND} {_text(kind)!r} is not one of {[k.value for k in Kind]}")
    found_encoding = _text(encoding) or "pickle"
    if found_encoding not in _ENCODINGS:
        raise InvalidError(f"{Header.ENCODING} {found_encoding!r} is not one of {sorted(_ENCODINGS)}")
    if not _METHOD.fullmatch(_text(method)):
        raise InvalidError(f"{Header.METHOD} {_text(method)!r} is not a name")
    encoded = _text(parameters)
    if len(encoded) > MAX_HEADER_PARAMETERS_BYTES:
        raise RequestSizeError(f"class parameters of {len(encoded)} bytes; at most {MAX_HEADER_PARAMETERS_BYTES}")
    return app, name, _text(function_id), _text(method), encoded, found_kind, found_encoding


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


def check_idempotency_key(key: str) -> str:
    """`key` itself. Raises `InvalidError` if it cannot be one."""
    if key and (len(key) > MAX_IDEMPOTENCY_KEY_CHARS or not key.isascii() or not key.isprintable()):
        raise InvalidError(
            f"{Header.IDEMPOTENCY_KEY} must be 1 to {MAX_IDEMPOTENCY_KEY_CHARS} printable ASCII characters",
            fix="Use an id of your own, such as an order number or a UUID.",
        )
    return key


def blob_size(ref: str | None) -> int:
    """Bytes behind a checked reference."""
    return parse_blob_ref(ref)[1] if ref else 0


def check_client_version(found: RawHeaders, server: bytes) -> None:
    """Raises `VersionError` for a client of another major release (or another 0.x)."""
    client = found.get(_CLIENT_VERSION, server)
    if client != server and _generation(client) != _generation(server):
        raise VersionError(f"client {_text(client)} and server {_text(server)} are of different releases")


def _generation(version: bytes) -> list[bytes]:
    parts = version.split(b".")
    return parts[:2] if parts[0] == b"0" else parts[:1]


def _options(value: bytes | None) -> str:
    if value is None:
        return ""
    if len(value) > MAX_HEADER_OPTIONS_BYTES:
        raise RequestSizeError(f"options of {len(value)} bytes; at most {MAX_HEADER_OPTIONS_BYTES}")
    return _text(value)


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode("latin-1")


def sent_ns(text: str) -> tuple[int, int] | None:
    """When encoding began and ended, where a caller says so."""
    start, _, end = text.partition(":")
    if start.isdigit() and end.isdigit() and int(start) <= int(end):
        return int(start), int(end)
    return None  # only the trace needs it: nothing is refused for it
