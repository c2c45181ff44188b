"""HTTP to hosts that users name: registries, and wherever they redirect to. The builder makes these requests itself, so
they reach no more than what runs in its build rooms.

A name is resolved once and the address that was judged is the one connected to; redirects and the places where tokens
are given are judged like the first address. A proxy of the operator's is trusted, names behind it are judged as far as
they can be resolved here.
"""

from __future__ import annotations

import http.client
import ipaddress
import math
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from squall.errors import ImageBuildError
from squall_images.egress import EgressRules

MAX_REDIRECTS = 5


class Forbidden(ImageBuildError):
    """The builder does not go there for users."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """What requests for users may reach."""

    rules: EgressRules
    trusted: frozenset[str] = frozenset()
    """`http://host[:port]`, `https://host[:port]` that the operator has named."""
    proxies: Mapping[str, str] = field(default_factory=urllib.request.getproxies)

    def check(self, url: str) -> None:
        """Raise `Forbidden` for a place that is none of users'."""
        parts = urlsplit(url)
        if "@" in parts.netloc or not parts.hostname:
            raise Forbidden(f"{url} is not an address of a registry")
        if f"{parts.scheme}://{parts.netloc}" in self.trusted:
            return
        if parts.scheme != "https":
            raise Forbidden(
                f"{parts.hostname} is asked over HTTPS alone",
                fix="The operator may name it with http:// as SQUALL_BUILDER_REGISTRY.",
            )
        try:
            self._addresses(parts.hostname, parts.port or 443)
        except OSError as error:
            if parts.scheme not in self.proxies:
                raise urllib.error.URLError(error) from error

    def _addresses(self, host: str, port: int) -> list[str]:
        """Those that may be connected to. Raises `Forbidden` if there are none, `OSError` for an unknown name."""
        reasons: list[str] = []
        good: list[str] = []
        for _, _, _, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            address = ipaddress.ip_address(str(place[0]).partition("%")[0])
            reason = self.rules.refusal(address)
            if reason is None:
                good.append(str(address))
            else:
                reasons.append(f"{address} {reason}")
        if not good:
            raise Forbidden(
                f"builds cannot reach {host}: {'; '.join(dict.fromkeys(reasons))}",
                fix="The operator may allow its network with SQUALL_BUILDER_ALLOWED.",
            )
        return good

    def opener(self, until: float = math.inf) -> urllib.request.OpenerDirector:
        """Opens what may be reached. `until`: on the monotonic clock, when everything has to be there."""
        https = _Https(self, until)
        handlers = (urllib.request.ProxyHandler(dict(self.proxies)), _Http(self), https, _Redirects(self))
        return urllib.request.build_opener(*handlers)

    def connect(self, place: tuple[str, int], timeout: Any = None, source: Any = None) -> socket.socket:
        """`socket.create_connection` that judges addresses."""
        host, port = place
        names = {urlsplit(url).netloc for url in (*self.trusted, *self.proxies.values())}
        if f"{host}:{port}" in names or (port in (80, 443) and host in names):
            return socket.create_connection(place, timeout, source)
        failure: OSError | None = None
        for address in self._addresses(host, port):
            try:
                return socket.create_connection((address, port), timeout, source)
            except OSError as error:
                failure = error
        raise failure or OSError(f"{host} has no address")


class _PlainConnection(http.client.HTTPConnection):
    def __init__(self, host: str, *, guard: Guard, **arguments: Any) -> None:
        super().__init__(host, **arguments)
        self._create_connection = guard.connect


class _Hurried(ssl.SSLSocket):
    """Who sends a byte a minute is never late for a timeout, and would be waited for without end."""

    until = math.inf

    def recv_into(self, *arguments: Any, **named: Any) -> int:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("it takes too long")
        if left < (self.gettimeout() or math.inf):
            self.settimeout(left)
        return super().recv_into(*arguments, **named)


class _TlsConnection(http.client.HTTPSConnection):
    def __init__(self, host: str, *, guard: Guard, until: float, **arguments: Any) -> None:
        context = ssl.create_default_context()
        context.sslsocket_class = _Hurried
        super().__init__(host, context=context, **arguments)
        self._create_connection = guard.connect
        self._until = until

    def connect(self) -> None:
        super().connect()
        assert isinstance(self.sock, _Hurried)
        self.sock.until = self._until


class _Http(urllib.request.HTTPHandler):
    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self._guard = guard

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PlainConnection, request, guard=self._guard)  # type: ignore[arg-type]


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, guard: Guard, until: float) -> None:
        super().__init__()
        self._guard = guard
        self._until = until

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_TlsConnection, request, guard=self._guard, until=self._until)  # type: ignore[arg-type]


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self._guard = guard

    def redirect_request(self, *arguments: Any) -> urllib.request.Request | None:
        self._guard.check(arguments[-1])
        return super().redirect_request(*arguments)
