"""Tokens with which the builder gets volumes for a step: of the workspace that asks, gone when the step has ended."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator

from squall_bus import Bus, BusError
from squall_contracts.functions import CONTAINER_TOKEN, TOKENS, TokenRecord, token_key
from squall_contracts.roles import BUILDERS_NODE
from squall_service.clock import Clock
from squall_service.telemetry import log

SCOPE = "container"
"""A build may do to volumes what a container may."""
LIFE_S = 25 * 3600.0
"""Longer than any step. What a builder that was killed leaves is of no use after that."""


@contextlib.asynccontextmanager
async def of_workspace(bus: Bus, clock: Clock, workspace: str) -> AsyncIterator[str]:
    """A token for one step."""
    token = f"{CONTAINER_TOKEN}.{BUILDERS_NODE}.{secrets.token_urlsafe(32)}"
    now, key = clock.now(), token_key(token.encode())
    record = TokenRecord(
        workspace=workspace, name="volumes of a build step", scope=SCOPE, created_at=now, expires_at=now + LIFE_S
    )
    await bus.kv(TOKENS).put(key, record.encode())
    try:
        yield token
    finally:
        try:
            await bus.kv(TOKENS).delete(key)
        except BusError as error:
            log.warning("token_not_revoked", reason=error.message)
