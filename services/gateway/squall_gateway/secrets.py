"""Secrets: made, changed, listed, removed. Owns the bucket `secrets`; seals values before they leave this process.

Nobody can read a value back here: only agents open them, for the containers that declare them.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from squall.errors import AlreadyExistsError, ConflictError, InvalidError, NotFoundError, RequestSizeError
from squall.http_api.storage import PutSecret, SecretInfo, SecretValues, UpdateSecret
from squall.ids import check_name, new_id
from squall.spec import FunctionSpec, SecretRef
from squall_bus import Bus, Entry, KeyExists, WrongRevision
from squall_contracts.secrets import SECRETS, SecretRecord, secret_key, secrets_of, unnamed_secret_key
from squall_service.clock import Clock
from squall_service.sealing import Sealer

TRIES = 8
MAX_VALUE_CHARACTERS = 32_768
MAX_SECRET_BYTES = 256 * 1024
RESERVED = ("SQUALL_", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,16383}")
_ID = re.compile(r"st-[0-9a-z]+")

Values = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Secrets:
    """Writes secrets, and tells their names."""

    bus: Bus
    sealer: Sealer
    clock: Clock

    # ------------------------------------------------------------------ writing

    async def put(self, wanted: PutSecret, workspace: str) -> SecretInfo:
        """Make one, or give one other values. Raises `AlreadyExistsError`, `InvalidError`."""
        key = self._key(workspace, wanted.environment, wanted.name)
        check_values(wanted.values)
        fresh = self._new(workspace, wanted.environment, wanted.name)
        record = await self._sealed(fresh, wanted.values)
        try:
            await self.bus.kv(SECRETS).create(key, record.encode())
        except KeyExists:
            if not wanted.replace:
                raise AlreadyExistsError(
                    f"secret {wanted.name!r} is there", fix="Choose another name, or replace it with `--force`."
                ) from None
            return await self._change(key, wanted.name, lambda _: wanted.values)
        return info_of(record)

    async def update(self, name: str, wanted: UpdateSecret, workspace: str) -> SecretInfo:
        """Set some values of one, remove others. Raises `NotFoundError`, `InvalidError`."""
        check_values({key: value for key, value in wanted.values.items() if value is not None})

        def changed(values: Values) -> Values:
            merged = {**values, **wanted.values}
            return {key: value for key, value in merged.items() if value is not None}

        return await self._change(self._key(workspace, wanted.environment, name), name, changed)

    async def keep(self, wanted: SecretValues, workspace: str) -> SecretInfo:
        """Values without a name, under an id that equal values always have."""
        check_name(wanted.environment, "environment")
        check_values(wanted.values)
        fingerprint = self.sealer.fingerprint(f"{workspace}/{wanted.environment}/".encode() + _text(wanted.values))
        record = replace(self._new(workspace, wanted.environment, ""), secret_id=f"st-{fingerprint[:24]}")
        record = await self._sealed(record, wanted.values)
        try:
            await self.bus.kv(SECRETS).create(unnamed_secret_key(workspace, record.secret_id), record.encode())
        except KeyExists:
            pass  # the same values
        return info_of(record)

    async def delete(self, name: str, environment: str, workspace: str) -> SecretInfo:
        """Remove one: containers that declare it no longer start. Raises `NotFoundError`."""
        key = self._key(workspace, environment, name)
        record = SecretRecord.decode((await self._entry(key, name, environment)).value)
        await self.bus.kv(SECRETS).delete(key)
        return info_of(record)

    async def _change(self, key: str, name: str, change: Callable[[Values], Values]) -> SecretInfo:
        for _ in range(TRIES):
            entry = await self._entry(key, name, "")
            record = SecretRecord.decode(entry.value)
            values = change(json.loads(await asyncio.to_thread(self.sealer.open, record.sealed, record.purpose)))
            check_values(values)
            record = await self._sealed(replace(record, updated_at=self.clock.now()), values)
            try:
                await self.bus.kv(SECRETS).update(key, record.encode(), entry.revision)
            except WrongRevision:
                continue
            return info_of(record)
        raise ConflictError(f"secret {name!r} was changed by others at the same time, {TRIES} times in a row")

    def _new(self, workspace: str, environment: str, name: str) -> SecretRecord:
        now = self.clock.now()
        return SecretRecord(new_id("st"), workspace, environment, name, (), b"", now, now)

    async def _sealed(self, record: SecretRecord, values: Values) -> SecretRecord:
        sealed = await asyncio.to_thread(self.sealer.seal, _text(values), record.purpose)
        return replace(record, keys=tuple(sorted(values)), sealed=sealed)

    # ------------------------------------------------------------------ looking

    async def info(self, name: str, environment: str, workspace: str) -> SecretInfo:
        """What may be told about one. Raises `NotFoundError`."""
        entry = await self._entry(self._key(workspace, environment, name), name, environment)
        return info_of(SecretRecord.decode(entry.value))

    async def list(self, environment: str, workspace: str) -> list[SecretInfo]:
        """Those with names."""
        entries = await self.bus.kv(SECRETS).entries(secrets_of(workspace, check_name(environment, "environment")))
        return [info_of(SecretRecord.decode(entry.value)) for entry in entries]

    async def check(self, specs: Sequence[FunctionSpec], workspace: str) -> None:
        """Refuse an app whose secrets are not there: better now than when its containers start."""
        for spec in specs:
            of_buckets = [bucket.secret for bucket in spec.buckets if bucket.secret is not None]
            for wanted in (*spec.secrets, *of_buckets):
                await self._check(wanted, spec.name, workspace)

    async def _check(self, wanted: SecretRef, function: str, workspace: str) -> None:
        try:
            record = SecretRecord.decode((await self._entry_of(wanted, workspace)).value)
        except NotFoundError as error:
            raise NotFoundError(f"function {function!r}: {error.message}", fix=error.hint) from None
        missing = [key for key in wanted.required if key not in record.keys]
        if missing:
            raise InvalidError(
                f"function {function!r}: secret {wanted.name!r} has no {', '.join(missing)}",
                fix=f"Add it: `squall secret update {wanted.name} {missing[0]}=...`.",
            )

    async def _entry_of(self, wanted: SecretRef, workspace: str) -> Entry:
        if wanted.name:
            return await self._entry(
                self._key(workspace, wanted.environment, wanted.name), wanted.name, wanted.environment
            )
        known = _ID.fullmatch(wanted.id) is not None
        key = unnamed_secret_key(workspace, wanted.id)
        entry = await self.bus.kv(SECRETS).get(key, from_leader=True) if known else None
        if entry is None:
            raise NotFoundError(f"there are no secret values {wanted.id!r}", fix="Run or deploy the app again.")
        return entry

    async def _entry(self, key: str, name: str, environment: str) -> Entry:
        entry = await self.bus.kv(SECRETS).get(key, from_leader=True)
        if entry is None:
            where = f" in environment {environment!r}" if environment else ""
            raise NotFoundError(
                f"there is no secret {name!r}{where}", fix=f"Make it: `squall secret create {name} KEY=VALUE`."
            )
        return entry

    @staticmethod
    def _key(workspace: str, environment: str, name: str) -> str:
        check_name(environment, "environment")
        return secret_key(workspace, environment, check_name(name, "secret"))


def check_values(values: Mapping[str, str]) -> None:
    """Raise `InvalidError` or `RequestSizeError`, without showing any value."""
    for key, value in values.items():
        if not _KEY.fullmatch(key):
            raise InvalidError(
                f"secret key {key[:64]!r} is not valid", fix="Use letters, digits and underscores, not a digit first."
            )
        if key.startswith(RESERVED):
            raise InvalidError(f"secret key {key} belongs to the platform", fix="Choose another name.")
        if "\0" in value:
            raise InvalidError(f"the value of secret key {key} contains a null character")
        if len(value) > MAX_VALUE_CHARACTERS:
            raise RequestSizeError(
                f"the value of secret key {key} has {len(value)} characters, more than {MAX_VALUE_CHARACTERS}",
                fix="Put large values into a Volume or a file of the image, and only their key into a secret.",
            )
    if len(_text(values)) > MAX_SECRET_BYTES:
        raise RequestSizeError(f"a secret can have {MAX_SECRET_BYTES >> 10} KiB in all", fix="Make several secrets.")


def info_of(record: SecretRecord) -> SecretInfo:
    """What is told about a secret."""
    return SecretInfo(
        id=record.secret_id,
        name=record.name,
        environment=record.environment,
        keys=tuple(record.keys),
        created_at=record.created_at,
        updated_at=record.updated_at,
    )


def _text(values: Values) -> bytes:
    return json.dumps(dict(values), sort_keys=True).encode()
