"""Secrets: read and opened for one container when it starts, or for one build step. Nothing of them is kept, logged or
passed on."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence

from squall.errors import NotFoundError
from squall.spec import SecretRef
from squall_bus import Bus
from squall_contracts.secrets import SECRETS, SecretRecord, secret_key, unnamed_secret_key
from squall_service.sealing import Sealer


class Secrets:
    """What containers and builds are given of the bucket `secrets`."""

    def __init__(self, bus: Bus, sealer: Sealer) -> None:
        self._bucket = bus.kv(SECRETS)
        self._sealer = sealer

    async def of(self, wanted: Sequence[SecretRef], workspace: str) -> tuple[dict[str, str], str]:
        """The variables that secrets of a workspace stand for, as they are now, and a name for that state.

        Raises `SquallError` for one that is missing, lacks a required key or cannot be opened."""
        if not wanted:
            return {}, ""
        records = [await self._record(each, workspace) for each in wanted]
        values = await asyncio.to_thread(self._opened, records)
        states = [f"{record.secret_id}@{record.updated_at}" for record in records]
        return values, hashlib.sha256(" ".join(states).encode()).hexdigest()[:16]

    async def _record(self, wanted: SecretRef, workspace: str) -> SecretRecord:
        key = unnamed_secret_key(workspace, wanted.id)
        if wanted.name:
            key = secret_key(workspace, wanted.environment, wanted.name)
        # From the leader: the container after a change sees the change.
        entry = await self._bucket.get(key, from_leader=True)
        label = repr(wanted.name or wanted.id)
        if entry is None:
            raise NotFoundError(
                f"its secret {label} does not exist (any more) in environment {wanted.environment!r}: "
                f"make it with `squall secret create`"
            )
        record = SecretRecord.decode(entry.value)
        missing = [key for key in wanted.required if key not in record.keys]
        if missing:
            raise NotFoundError(
                f"its secret {label} has no {', '.join(missing)}: add it with `squall secret update {wanted.name}`"
            )
        return record

    def _opened(self, records: Sequence[SecretRecord]) -> dict[str, str]:
        values: dict[str, str] = {}
        for record in records:
            values |= json.loads(self._sealer.open(record.sealed, record.purpose))
        return values
