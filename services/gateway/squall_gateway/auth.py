"""Who asks, and what they may do. Owns the bucket `tokens`; keeps hashes, never tokens."""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from dataclasses import dataclass

from squall.errors import AuthError, InvalidError, PermissionDeniedError, ProxyAuthError
from squall.http_api.routes import Route
from squall_bus import Bus, KeyExists
from squall_contracts.functions import TOKENS, TokenRecord, token_key
from squall_gateway.policy import access
from squall_service.clock import Clock
from squall_service.telemetry import log

CACHE_S = 5.0
"""A revoked token works for so long at most."""
UNKNOWN_CACHE_S = 1.0
MAX_CACHED = 20_000
SCOPES = ("workspace", "caller", "container", "service", "proxy")
SERVICE = "service"
"""Of agents and builders: they serve all workspaces."""
CALLER = "caller"
"""Of programs that only make calls."""
PROXY = "proxy"
"""Of clients of web functions with `requires_proxy_auth`; of no use for the API."""
CONTAINER = "container"
"""The only scope that an agent may give."""
_BEARER = b"bearer "

# Paths by scope; a workspace token may do what its role may (policy/access.py). User code makes calls as itself, agents
# move blobs.
_CALLING = ("/v1/info", "/v1/calls", "/v1/blobs/", "/v1/functions", "/v1/spans", "/v1/spawns")
_STATE = (
    *("/v1/objects/", "/v1/object-ids/", "/v1/dicts/", "/v1/queues/", Route.ENTRIES),
    *("/v1/volumes/", "/v1/volume-blocks/"),
)
_IN_CONTAINERS = (*_CALLING, *_STATE, Route.SECRET_VALUES)
"""Containers use dicts and queues as any program of the workspace does. They may give their calls options with values
that they have; they can neither list nor change secrets."""
_ALLOWED: dict[str, tuple[str, ...]] = {
    "container": _IN_CONTAINERS,
    "service": _CALLING,
    "caller": _CALLING,
    "proxy": (),
}
_CHANGING = frozenset({Route.FUNCTION_SCALING})
"""Of these, what changes how things run: for people's programs, and for containers, whose code they deployed."""
_FUNCTIONS = re.compile(r"/v1/apps/[^/]+/functions/[^/]+/(call|spawn|map)")
"""Calls in JSON: for scope `caller` too."""


@dataclass(frozen=True, slots=True)
class _Cached:
    record: TokenRecord | None
    until: float


class Tokens:
    """Checks the bearer tokens of requests."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bucket = bus.kv(TOKENS)
        self._clock = clock
        self._cache: OrderedDict[bytes, _Cached] = OrderedDict()

    async def check(self, authorization: bytes | None, method: str, path: str) -> TokenRecord:
        """The rights behind an `Authorization` header. Raises `AuthError` or `PermissionDeniedError`."""
        if authorization is None or authorization[:7].lower() != _BEARER:
            raise AuthError("the request has no bearer token")
        now = self._clock.now()
        cached = self._cache.get(authorization)
        if cached is None or cached.until <= now:
            cached = await self._look_up(authorization, now)
        record = cached.record
        if record is None:
            raise AuthError("the token is unknown")
        if record.expires_at and record.expires_at <= now:
            raise AuthError("the token has expired", fix="Make a new token.")
        allowed = _ALLOWED.get(record.scope)
        if allowed is not None and not _may(record.scope, path, allowed):
            raise PermissionDeniedError(f"a token of scope {record.scope!r} does not allow {path}")
        if allowed is None and not access.allows(record.role, wanted := access.needed(method, path)):
            raise PermissionDeniedError(
                f"a token of role {record.role!r} does not allow {method} {path}",
                fix=f"Use a token of role {wanted!r}; an admin makes one with `squall token create --role {wanted}`.",
            )
        return record

    async def check_proxy(self, credentials: bytes | None, workspace: str) -> None:
        """Let the holder of a proxy token of this workspace pass. Raises `ProxyAuthError`."""
        if credentials is None:
            raise ProxyAuthError("missing credentials")
        now, authorization = self._clock.now(), b"proxy " + credentials  # another prefix than bearer's: an entry apart
        cached = self._cache.get(authorization)
        if cached is None or cached.until <= now:
            cached = await self._look_up(authorization, now, len(b"proxy "))
        record = cached.record
        known = record is not None and record.scope == PROXY and not 0 < record.expires_at <= now
        if record is None or not known or record.workspace != workspace:
            raise ProxyAuthError("invalid credentials")

    async def _look_up(self, authorization: bytes, now: float, prefix: int = len(_BEARER)) -> _Cached:
        key = token_key(authorization[prefix:].strip())
        entry = await self._bucket.get(key)
        record = None if entry is None else TokenRecord.decode(entry.value)
        if record is not None and "." in key and record.scope != CONTAINER:
            log.error("token_exceeds_its_agent", name=record.name, scope=record.scope)
            record = None
        cached = _Cached(record, now + (UNKNOWN_CACHE_S if record is None else CACHE_S))
        self._cache[authorization] = cached
        self._cache.move_to_end(authorization)
        if len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)
        return cached


def _may(scope: str, path: str, allowed: tuple[str, ...]) -> bool:
    if path in _CHANGING:
        return scope == CONTAINER
    return path.startswith(allowed) or _may_call(scope, path)


def _may_call(scope: str, path: str) -> bool:
    return scope == "caller" and _FUNCTIONS.fullmatch(path) is not None


async def create_token(  # noqa: PLR0913 — the fields of its record
    bus: Bus,
    workspace: str,
    scope: str,
    name: str,
    *,
    now: float,
    token: str | None = None,
    expires_at: float = 0.0,
    role: str = "",
) -> str:
    """A new token (256 random bits), or `token` made known; safe to repeat. What is returned is stored nowhere."""
    if scope not in SCOPES:
        raise InvalidError(f"token scope {scope!r} is not one of {', '.join(SCOPES)}")
    if token is None and scope == PROXY:
        token = f"wk-{secrets.token_hex(8)}.ws-{secrets.token_urlsafe(32)}"
    token = token or "sq-" + secrets.token_urlsafe(32)
    record = TokenRecord(workspace=workspace, name=name, scope=scope, created_at=now, expires_at=expires_at, role=role)
    try:
        await bus.kv(TOKENS).create(token_key(token.encode()), record.encode())
    except KeyExists:
        pass
    return token
