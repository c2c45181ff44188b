"""Proxy credentials in a request: key and secret in two headers, or both in a bearer token. Reads, checks nothing."""

from __future__ import annotations

_PAIRS = ((b"modal-key", b"modal-secret"), (b"squall-key", b"squall-secret"))
_BEARER = b"bearer "


def credentials_of(headers: dict[bytes, bytes]) -> bytes | None:
    """`<key>.<secret>`; None when the request has none."""
    for key, secret in _PAIRS:
        if key in headers and secret in headers:
            return headers[key].strip() + b"." + headers[secret].strip()
    authorization = headers.get(b"authorization", b"")
    if authorization[: len(_BEARER)].lower() == _BEARER:
        return authorization[len(_BEARER) :].strip()
    return None
