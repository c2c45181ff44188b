"""Container tokens: what authenticates calls that user code makes. One per app, revoked at the drain."""

from __future__ import annotations

import asyncio
import secrets

from squall_bus import Bus, BusError
from squall_contracts.functions import CONTAINER_TOKEN, TOKENS, FunctionRecord, TokenRecord, token_key
from squall_contracts.roles import container_token_key
from squall_gpu_agent.identity import Identity
from squall_service.clock import Clock
from squall_service.telemetry import log

SCOPE = "container"


class ContainerTokens:
    """The tokens of this agent's apps. The tokens themselves are kept in memory only; the bus has their hashes."""

    def __init__(self, bus: Bus, identity: Identity, clock: Clock) -> None:
        self._tokens = bus.kv(TOKENS)
        self._clock = clock
        self._node = identity.node
        self._name = f"containers on {identity.node}"
        self._by_app: dict[str, str] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def of(self, function: FunctionRecord) -> str:
        """The token for containers of this function's app."""
        async with self._locks.setdefault(function.app_id, asyncio.Lock()):
            token = self._by_app.get(function.app_id)
            if token is None:
                token = f"{CONTAINER_TOKEN}.{self._node}.{secrets.token_urlsafe(32)}"
                await self._tokens.put(_key(token), self._record(function).encode())
                self._by_app[function.app_id] = token
        return token

    def _record(self, function: FunctionRecord) -> TokenRecord:
        return TokenRecord(
            workspace=function.workspace,
            name=self._name,
            scope=SCOPE,
            created_at=self._clock.now(),
            app_id=function.app_id,
        )

    async def revoke_left_over(self) -> None:
        """Delete what an earlier life of this agent could not revoke."""
        async with self._tokens.watch(container_token_key(self._node, "")) as changes:
            async for change in changes:
                if change.synced:
                    return
                await self._tokens.delete(change.key)

    async def revoke(self) -> None:
        """No container of this agent is left."""
        by_app, self._by_app = self._by_app, {}
        try:
            for token in by_app.values():
                await self._tokens.delete(_key(token))
        except BusError as error:
            log.warning("tokens_not_revoked", reason=error.message)  # the next start does it


def _key(token: str) -> str:
    return token_key(token.encode())
