"""/v1/tokens: who may use the API. Only tokens of scope `workspace` and role `admin` get here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastapi import APIRouter, Request

from squall.errors import ConflictError, InvalidError, NotFoundError
from squall.http_api.access import ROLES, MakeToken, NewToken, TokenInfo
from squall.http_api.routes import Route
from squall.ids import check_name
from squall_bus import Bus
from squall_contracts.functions import TOKENS, TokenRecord, token_key
from squall_gateway.api.requests import workspace_of
from squall_gateway.auth import CONTAINER, PROXY, create_token
from squall_gateway.policy.access import ADMIN
from squall_service.clock import Clock

WORKSPACE = "workspace"
GIVEN = (WORKSPACE, "caller", PROXY)
"""Scopes that people may give; the others are the platform's own."""
MIN_LIFETIME_S, MAX_LIFETIME_S = 60.0, 10 * 365 * 86400.0
ID_DIGITS = 16


@dataclass(frozen=True)
class TokenList:
    """GET /v1/tokens."""

    tokens: list[TokenInfo]


@dataclass(frozen=True, slots=True)
class TokenRoutes:
    """Makes, lists and revokes tokens of a workspace."""

    bus: Bus
    clock: Clock

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["tokens"])
        router.get(Route.TOKENS)(self.list_tokens)
        router.post(Route.TOKENS)(self.create)
        router.delete(Route.TOKEN)(self.revoke)
        return router

    async def list_tokens(self, request: Request) -> TokenList:
        """The tokens of the workspace, without those that agents gave to containers."""
        found = await self._records(workspace_of(request))
        rows = [info_of(key, record) for key, record in found.items()]
        return TokenList(sorted(rows, key=lambda row: row.created_at, reverse=True))

    async def create(self, request: Request, wanted: MakeToken) -> NewToken:
        """A new token. It is told this one time."""
        check_name(wanted.name, "token")
        if wanted.scope not in GIVEN:
            raise InvalidError(f"token scope {wanted.scope!r} cannot be given", fix=f"Use {' or '.join(GIVEN)}.")
        if wanted.role not in ROLES:
            raise InvalidError(f"token role {wanted.role!r} is not one of {', '.join(ROLES)}")
        role = wanted.role if wanted.scope == WORKSPACE else ""
        if not role and wanted.role != MakeToken("").role:
            raise InvalidError(
                f"a token of scope {wanted.scope!r} has no role", fix=f"Leave it out, or use scope {WORKSPACE!r}."
            )
        now = self.clock.now()
        expires_at = 0.0 if wanted.lifetime_s is None else now + checked_lifetime(wanted.lifetime_s)
        workspace = workspace_of(request)
        token = await create_token(
            self.bus, workspace, wanted.scope, wanted.name, now=now, expires_at=expires_at, role=role
        )
        return NewToken(token, token_id(token_key(token.encode())), wanted.name, wanted.scope, expires_at, role)

    async def revoke(self, request: Request, token: str) -> TokenInfo:
        """Make a token useless; gateways that have seen it forget it within five seconds."""
        found = await self._records(workspace_of(request))
        key = next((key for key in found if token_id(key) == token), None)
        if key is None:
            raise NotFoundError(
                f"there is no token {token!r}", fix="`squall token list` shows the ids of those that are."
            )
        if key == token_key(request.headers["authorization"].encode("latin-1")[7:].strip()):
            raise ConflictError(f"{token} is the token of this very request", fix="Revoke it with another token.")
        await self.bus.kv(TOKENS).delete(key)
        return info_of(key, found[key])

    async def _records(self, workspace: str) -> dict[str, TokenRecord]:
        entries = {entry.key: TokenRecord.decode(entry.value) for entry in await self.bus.kv(TOKENS).entries()}
        return {
            k: record for k, record in entries.items() if record.workspace == workspace and record.scope != CONTAINER
        }


def token_id(key: str) -> str:
    """What a token is called: a part of its hash."""
    return f"tk-{key[:ID_DIGITS]}"


def info_of(key: str, record: TokenRecord) -> TokenInfo:
    """What is told about a token."""
    role = (record.role or ADMIN) if record.scope == WORKSPACE else ""
    return TokenInfo(token_id(key), record.name, record.scope, record.created_at, record.expires_at, role)


def checked_lifetime(seconds: float) -> float:
    """`seconds` itself. Raises `InvalidError`."""
    if not math.isfinite(seconds) or not MIN_LIFETIME_S <= seconds <= MAX_LIFETIME_S:
        raise InvalidError("the lifetime of a token must be one minute to ten years", fix="Leave it out for no end.")
    return seconds
