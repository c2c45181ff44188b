"""Parked requests: they run on without a client, which was sent away with a 303 to ask again for the answer.

For clients, and proxies between, that cut what is silent for long. The answer waits in the container's connection, so
nothing of it is kept here. Owns how long a parked request waits for somebody to ask.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from squall.errors import InvalidError, NotFoundError
from squall_gateway.answers import Send, send_whole
from squall_gateway.web.forward import Exchange
from squall_gateway.web.routes import Route

PARAMETER = "__squall_function_call_id"
_PARAMETERS = (PARAMETER, "__modal_function_call_id")
UNATTENDED_S = 300.0
"""A parked request of which nobody asks for the answer in this time is given up."""
_PREFER = re.compile(r"(?:^|[,;\s])respond-async(?:$|[,;\s])", re.IGNORECASE)
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,5})", re.IGNORECASE)


@dataclass(slots=True, kw_only=True)
class Parked:
    """One request without a client."""

    name: str
    """Of the web function that it is for."""
    route: Route
    exchange: Exchange
    ends_at: float
    """Monotonic: when the function's timeout has passed."""
    patience_s: float
    seen_at: float
    """Monotonic: when somebody asked last."""
    asking: int = 0


def patience_of(headers: dict[bytes, bytes], default_s: float) -> float:
    """How long the client waits for the beginning of an answer before it wants to be sent away; 0: for ever."""
    preference = headers.get(b"prefer")
    if preference is None or not _PREFER.search(text := preference.decode("latin-1")):
        return default_s
    wait = _WAIT.search(text)
    return max(1.0, float(wait[1])) if wait else default_s or 1.0


def parked_call(query: bytes) -> str:
    """Which parked request a query asks for; empty for a request of its own."""
    if b"function_call_id" not in query:
        return ""
    given = dict(parse_qsl(query.decode("latin-1")))
    return next((given[name] for name in _PARAMETERS if name in given), "")


async def begins(route: Route, patience_s: float) -> bool:
    """Wait for an answer to begin. False when it has not in that time."""
    try:
        async with asyncio.timeout(patience_s):
            await route.upstream.answers()
    except TimeoutError:
        return False
    return True


async def send_away(scope: MutableMapping[str, Any], headers: dict[bytes, bytes], send: Send, call: str) -> None:
    """303: ask again for the answer. With a full address: `//x/y` alone would be somebody else's."""
    query = [part for part in scope["query_string"].split(b"&") if part and b"function_call_id=" not in part]
    query.append(f"{PARAMETER}={call}".encode())
    origin = scope.get("scheme", "http").encode() + b"://" + headers.get(b"host", b"localhost")
    location = origin + scope["raw_path"] + b"?" + b"&".join(query)
    await send_whole(send, 303, b"", [(b"location", location), (b"cache-control", b"no-store")])


class Parking:
    """All parked requests of this gateway."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._parked: dict[str, Parked] = {}

    @property
    def full(self) -> bool:
        """No more can be parked: who waits goes on waiting."""
        return len(self._parked) >= self._most

    def park(self, call: str, parked: Parked) -> None:
        """It goes on without a client."""
        self._parked[call] = parked

    def find(self, call: str, name: str, method: str) -> Parked:
        """The request whose answer is asked for. Raises `NotFoundError`, `InvalidError`."""
        if method != "GET":
            raise InvalidError(f"the answer of {call} is asked for by GET, not {method}")
        parked = self._parked.get(call)
        if parked is None or parked.name != name:
            raise NotFoundError(
                f"there is no answer of {call} here",
                fix="An answer is given once, by the gateway that took the request, within five minutes.",
            )
        return parked

    def take(self, call: str, parked: Parked) -> bool:
        """Its answer has begun and is given to the one who asks; False when somebody else was faster."""
        return self._parked.get(call) is parked and self._parked.pop(call) is parked

    def tick(self, now: float) -> None:
        """Give up what nobody asks for."""
        for call, parked in list(self._parked.items()):
            if not parked.asking and now - parked.seen_at > UNATTENDED_S:
                del self._parked[call]
                parked.route.close()
