"""Signing: the key of a workspace's webhooks, made when it is first needed and kept as secrets are. Owns its record."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import NamedTuple

from squall.errors import ConflictError
from squall.ids import new_id
from squall_bus import Bus, Entry, KeyExists, WrongRevision
from squall_contracts.secrets import SECRETS, SecretRecord, webhook_key_key
from squall_service.clock import Clock
from squall_service.sealing import Sealer

KEY_BYTES = 32
BOTH_S = 24 * 3600.0
"""After a rotation the key before signs too, for so long."""
CACHE_S = 10.0
TRIES = 8


class SigningKeys(NamedTuple):
    """The keys of a workspace."""

    current: str
    previous: str = ""
    previous_until: float = 0.0

    def valid(self, now: float) -> list[str]:
        """Those that sign."""
        return [self.current, self.previous] if self.previous and now < self.previous_until else [self.current]


@dataclass(slots=True)
class Signing:
    """Makes, reads and replaces keys, and signs."""

    bus: Bus
    sealer: Sealer
    clock: Clock
    _cache: dict[str, tuple[float, SigningKeys]] = field(default_factory=dict)

    async def keys(self, workspace: str) -> SigningKeys:
        """The keys; made if there are none. Raises `SecretsKeyError`."""
        until, keys = self._cache.get(workspace, (0.0, None))
        now = self.clock.monotonic()
        if keys is None or until <= now:
            keys, _ = await self._read(workspace)
            self._cache[workspace] = (now + CACHE_S, keys)
        return keys

    async def rotate(self, workspace: str) -> SigningKeys:
        """A new key; the present one is valid for another day."""
        for _ in range(TRIES):
            keys, entry = await self._read(workspace)
            changed = SigningKeys(new_key(), keys.current, self.clock.now() + BOTH_S)
            record = replace(SecretRecord.decode(entry.value), updated_at=self.clock.now())
            try:
                await self._write(record, changed, entry.revision)
            except WrongRevision:
                continue
            self._cache.pop(workspace, None)
            return changed
        raise ConflictError("the signing key was changed by others at the same time")

    async def _read(self, workspace: str) -> tuple[SigningKeys, Entry]:
        key, bucket = webhook_key_key(workspace), self.bus.kv(SECRETS)
        entry = await bucket.get(key, from_leader=True)
        if entry is None:
            now = self.clock.now()
            fresh = SecretRecord(new_id("st"), workspace, "", "", ("webhooks",), b"", now, now)
            try:
                await self._write(fresh, SigningKeys(new_key()), None)
            except KeyExists:
                pass  # by another gateway
            entry = await bucket.get(key, from_leader=True)
            assert entry is not None, "nobody removes signing keys"
        record = SecretRecord.decode(entry.value)
        opened = await asyncio.to_thread(self.sealer.open, record.sealed, record.purpose)
        return SigningKeys(*json.loads(opened)), entry

    async def _write(self, record: SecretRecord, keys: SigningKeys, revision: int | None) -> None:
        sealed = await asyncio.to_thread(self.sealer.seal, json.dumps(keys).encode(), record.purpose)
        value, bucket = replace(record, sealed=sealed).encode(), self.bus.kv(SECRETS)
        key = webhook_key_key(record.workspace)
        if revision is None:
            await bucket.create(key, value)
        else:
            await bucket.update(key, value, revision)


def new_key() -> str:
    """A signing key in the form of Standard Webhooks."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()}"


def signed_headers(keys: Sequence[str], webhook_id: str, now: float, body: bytes) -> dict[str, str]:
    """The three headers of Standard Webhooks; with several keys several signatures."""
    from standardwebhooks import Webhook  # 100 ms, for those who have webhooks

    at = datetime.fromtimestamp(int(now), UTC)
    signatures = [Webhook(key).sign(webhook_id, at, body.decode()) for key in keys]
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(now)),
        "webhook-signature": " ".join(signatures),
    }
