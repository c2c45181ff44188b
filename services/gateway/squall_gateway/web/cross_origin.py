"""Pages of other origins: what a browser asks ahead of a request (a preflight), and which refusals a page may read.

A preflight never has credentials (Fetch Standard, section 4.8), so a function behind a proxy token could not answer one
without letting everybody start its containers. The gateway answers instead and allows what is asked for: the request
that follows needs the token, and whether its answer may be read is for the app to say.
"""

from __future__ import annotations

from squall_gateway.answers import Headers

ANYBODY = (b"access-control-allow-origin", b"*")
"""Browsers apply it to requests without cookies only."""
KEPT_S = 600
"""How long a browser need not ask again."""
_METHOD, _NAMES = b"access-control-request-method", b"access-control-request-headers"


def is_preflight(method: str, headers: dict[bytes, bytes]) -> bool:
    """Whether a browser asks what a page may do."""
    return method == "OPTIONS" and b"origin" in headers and _METHOD in headers


def preflight_answer(headers: dict[bytes, bytes]) -> Headers:
    """The headers of the answer that allows what a preflight asks for."""
    return (
        ANYBODY,
        (b"access-control-allow-methods", headers[_METHOD]),
        (b"access-control-allow-headers", headers.get(_NAMES, b"")),
        (b"access-control-max-age", b"%d" % KEPT_S),
        (b"vary", _METHOD + b", " + _NAMES),
    )
