"""Posting: one request to a receiver, within limits of time and place. Loaded when the first one is sent: 60 ms.

The receiver's name is resolved once, every address is judged, and one that was judged is connected to; redirects are
not followed, proxies of the environment not used, answers not read but for their status.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import certifi
import httpcore

from squall_gateway.policy.webhook_targets import TargetRules
from squall_gateway.policy.webhook_tries import Answer
from squall_service.telemetry import log

TOTAL_S, CONNECT_S = 20.0, 5.0
NAMES_AT_ONCE = 256
"""As many as there are requests: names that nobody answers for take longer than a request may."""
FAILURES = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.UnsupportedProtocol)
USER_AGENT = "squall-webhooks"


class Refused(httpcore.ConnectError):
    """It may not be sent there."""


class JudgedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections to places that the rules allow."""

    def __init__(self, rules: TargetRules) -> None:
        self._rules = rules
        self._inner = httpcore.AnyIOBackend()
        # Threads of their own: names that nobody answers for must not hold up what else the gateway does in threads.
        self._names = ThreadPoolExecutor(NAMES_AT_ONCE, thread_name_prefix="webhook-names")

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._names, partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        )
        places = list(dict.fromkeys(str(place[0]).partition("%")[0] for *_, place in found))
        for place in places:
            if refusal := self._rules.refusal(ipaddress.ip_address(place), port):
                # Not which one: names of private networks are not known to everybody whose webhooks these are.
                raise Refused(f"{host} {refusal}")
        failed: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        for place in places:
            try:
                return await self._inner.connect_tcp(place, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed or httpcore.ConnectError(f"{host} has no address")

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise Refused("webhooks are not sent to sockets")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Post:
    """Sends requests, each over a connection of its own."""

    def __init__(self, rules: TargetRules) -> None:
        self._backend = JudgedBackend(rules)
        self._tls = ssl.create_default_context()
        self._tls.load_verify_locations(certifi.where())

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """What came of it; never raises for what receivers, networks and names do."""
        sent = {"content-type": "application/json", "user-agent": USER_AGENT, "accept-encoding": "identity", **headers}
        wanted = {"timeout": {"connect": CONNECT_S, "read": TOTAL_S, "write": TOTAL_S, "pool": TOTAL_S}}
        try:
            async with (
                asyncio.timeout(TOTAL_S),
                self._pool() as pool,
                pool.stream("POST", url, headers=_bytes(sent), content=body, extensions=wanted) as response,
            ):
                return _told(response.status)
        except TimeoutError:
            return Answer(0, f"no answer within {TOTAL_S:.0f} s")
        except socket.gaierror as error:
            return Answer(0, f"the name is not known: {error.strerror}")
        except httpcore.ProtocolError:
            return Answer(0, "the answer is not HTTP")  # what it was is nobody's: it may be another service's banner
        except (*FAILURES, OSError, ValueError) as error:
            return Answer(0, f"{type(error).__name__}: {error}"[:300])
        except Exception as error:  # noqa: BLE001 — a try like any other: one that does not count is made for ever
            log.error("webhook_not_sent", host=urlsplit(url).hostname, error=error)
            return Answer(0, type(error).__name__)

    def _pool(self) -> httpcore.AsyncConnectionPool:
        return httpcore.AsyncConnectionPool(
            ssl_context=self._tls, max_connections=1, max_keepalive_connections=0, network_backend=self._backend
        )


def _told(status: int) -> Answer:
    if 300 <= status < 400:
        return Answer(status, f"answered {status}: redirects are not followed")
    return Answer(status, f"answered {status}")


def _bytes(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
