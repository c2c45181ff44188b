"""The path form of addresses: apps that believe they are at `/` work below `/web/<name>`.

Owns what answers say about paths (`Location`, cookies), and whose page a request is from that lost the prefix: a link
to `/result/7`, `fetch("/api")`, a WebSocket at `location.host`. Bodies are not touched. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from squall_gateway.web.addresses import PATH_PREFIX, Addressed
from squall_gateway.web.forward import Send

Headers = list[tuple[bytes, bytes]]
Known = Callable[[str], bool]
"""Whether a web function has this name."""

COOKIE = b"squall-web"
"""Which function's page this browser opened last: a WebSocket does not say which page opens it."""
_PREFIX = PATH_PREFIX.encode()
_TOLD = frozenset((b"location", b"content-location", b"refresh", b"set-cookie"))
_REFRESH = re.compile(rb"""(\s*[\d.]+\s*[;,]\s*(?:url\s*=\s*)?["']?)(.+)""", re.IGNORECASE | re.DOTALL)
_WHOLE_HOST = b"__host-"
"""Browsers refuse cookies of these names unless they are for every path."""
_SAME_ORIGIN = b"same-origin"


class PathForm:
    """One exchange in the path form: what the app says about paths is said about those below its prefix."""

    def __init__(
        self, addressed: Addressed, scope: Mapping[str, Any], headers: Mapping[bytes, bytes], known: Known
    ) -> None:
        self._root = addressed.root_path.encode()
        self._name = addressed.name
        self._known = known
        self._host = headers.get(b"host", b"").lower()
        self._is_bare = scope["path"] == addressed.root_path
        self._is_page = is_navigation(headers) and cookie_in(headers) != addressed.name

    def sends(self, send: Send) -> Send:
        """An ASGI send that corrects the head of the answer."""

        async def corrected(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = self.headers(message["headers"])
            await send(message)

        return corrected

    def headers(self, told: Headers) -> Headers:
        """The same headers, with the prefix where a path of the app's own stands."""
        found = told
        if any(name in _TOLD for name, _ in told):
            found = [(name, self._value(name, value)) if name in _TOLD else (name, value) for name, value in told]
        if self._is_page:
            mark = b"%s=%s; Path=/; HttpOnly; SameSite=Strict" % (COOKIE, self._name.encode("latin-1"))
            found = [*found, (b"set-cookie", mark)]
        return found

    def _value(self, name: bytes, value: bytes) -> bytes:
        if name == b"set-cookie":
            return self._cookie(value)
        if name == b"refresh":
            parts = _REFRESH.fullmatch(value)
            return value if parts is None else parts[1] + self._target(parts[2])
        return self._target(value)

    def _target(self, target: bytes) -> bytes:
        """A path of the app's, alone or behind the host that it was asked at."""
        start = b""
        scheme, separator, rest = target.partition(b"://")
        if separator and scheme.lower() in (b"http", b"https"):
            host, slash, path = rest.partition(b"/")
            if host.lower() != self._host:
                return target
            start, target = scheme + separator + host, slash + path
        if not target.startswith(b"/") or target.startswith(b"//") or self._is_below_a_name(target):
            return start + target
        return start + self._root + target

    def _is_below_a_name(self, path: bytes) -> bool:
        """Said with a prefix already: its own, by apps that heed `root_path`, or that of another function."""
        if not path.startswith(_PREFIX):
            return False
        name = re.split(rb"[/?#]", path[len(_PREFIX) :], maxsplit=1)[0].decode("latin-1").lower()
        return name == self._name or self._known(name)

    def _cookie(self, cookie: bytes) -> bytes:
        pair, *attributes = cookie.split(b";")
        if pair.strip().lower().startswith(_WHOLE_HOST):
            return cookie
        has_path = False
        for number, attribute in enumerate(attributes):
            name, _, path = attribute.partition(b"=")
            if name.strip().lower() == b"path" and path.strip().startswith(b"/"):
                has_path, path = True, path.strip()
                below = path if self._is_below_a_name(path) else self._root + path.rstrip(b"/")
                attributes[number] = name + b"=" + below
        if not has_path and self._is_bare:  # browsers would take `/web`, which is everybody's
            attributes.append(b" Path=" + self._root)
        return b";".join([pair, *attributes])


def is_navigation(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser shows the answer as a page of its own."""
    destination = headers.get(b"sec-fetch-dest")
    if destination is not None:
        return destination in (b"document", b"iframe")
    return b"text/html" in headers.get(b"accept", b"") and b"mozilla" in headers.get(b"user-agent", b"").lower()


def with_slash(scope: Mapping[str, Any]) -> Headers:
    """Sends a browser from `/web/<name>` to `/web/<name>/`, for links without a slash are relative to that."""
    query = scope["query_string"]
    location = scope["raw_path"] + b"/" + (b"?" + query if query else b"")
    return [(b"location", location), (b"cache-control", b"no-store")]


def cookie_in(headers: Mapping[bytes, bytes]) -> str:
    """The function whose page this browser opened last; empty if it does not say."""
    for part in headers.get(b"cookie", b"").split(b";"):
        name, _, value = part.strip().partition(b"=")
        if name == COOKIE:
            return value.decode("latin-1")
    return ""


def home_of(headers: Mapping[bytes, bytes], known: Known, *, of_the_api: bool = False) -> str:
    """The prefix of the page that a request without one comes from; empty if it is from no page of this host.

    `of_the_api`: its path is one of the API's. Then the page itself must be below a prefix: which one was opened last
    is not enough to hand an app what may be an operator's request, with its token."""
    referer = headers.get(b"referer")
    if referer is None and headers.get(b"sec-fetch-site") != _SAME_ORIGIN:
        return ""
    if referer is not None:
        page = _split(referer)
        if page.netloc.lower() != headers.get(b"host", b"").decode("latin-1").lower():
            return ""
        if page.path.startswith(PATH_PREFIX):
            return _prefix(page.path[len(PATH_PREFIX) :].partition("/")[0], known)
    if of_the_api:
        return ""
    return _prefix(cookie_in(headers), known)  # its page has changed its own address, or keeps it for itself


def home_of_socket(headers: Mapping[bytes, bytes], known: Known) -> str:
    """The same for a WebSocket, which says from which host its page is and no more."""
    origin = _split(headers.get(b"origin", b""))
    if not origin.netloc or origin.netloc.lower() != headers.get(b"host", b"").decode("latin-1").lower():
        return ""
    return _prefix(cookie_in(headers), known)


def _split(url: bytes) -> SplitResult:
    try:
        return urlsplit(url.decode("latin-1"))
    except ValueError:
        return urlsplit("")


def _prefix(name: str, known: Known) -> str:
    return PATH_PREFIX + name if name and known(name.lower()) else ""
