"""Idempotency keys: the same key with the same arguments is the same call, for a day. Owns the bucket `idem`.

The key's record is written before the call, create-only, with the call's id: whoever comes later with the same key
takes over that id, and finishes making the call if the first one did not come to it.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from squall.errors import ConflictError, IdempotencyConflictError, InvalidError
from squall.http_api.protocol import Header
from squall.spec import Kind, digest
from squall_bus import Bus, KeyExists
from squall_contracts.calls import IDEM, KeyedCall
from squall_gateway.accept import Acceptor, Input
from squall_gateway.call_headers import CallHeaders
from squall_gateway.results import Results
from squall_gateway.targets import Target
from squall_service.clock import Clock

TRIES = 3
"""A key that expires just between create and read is created anew."""
_KINDS = (Kind.REMOTE, Kind.SPAWN)


class Claim(NamedTuple):
    """Which call a keyed request is about."""

    call: CallHeaders
    """With the id of the call that has the key."""
    accepted: bool
    """It was accepted before: nothing more is to be written."""


class IdempotencyKeys:
    """Ties keys to calls."""

    def __init__(self, bus: Bus, acceptor: Acceptor, results: Results, clock: Clock) -> None:
        self._bucket = bus.kv(IDEM)
        self._acceptor = acceptor
        self._results = results
        self._clock = clock

    async def claim(self, call: CallHeaders, target: Target, given: Input) -> Claim:
        """The call that this request stands for. Raises `IdempotencyConflictError` when the key has another payload,
        and what `accept` would raise: a call that is refused takes no key."""
        check_kind(call)
        workspace, payload_hash = target.function.workspace, hash_of(call, target, given)
        await self._acceptor.admit(call, target, [given])
        mine = KeyedCall(call.call, payload_hash, self._clock.now())
        known = await self._known_or_mine(key_of(call, workspace), mine)
        if known.payload_hash != payload_hash:
            raise IdempotencyConflictError(
                f"idempotency key {call.idempotency_key!r} belongs to {known.call}, which has other arguments",
                call=known.call,
            )
        if known is mine:
            return Claim(call, accepted=False)
        accepted = await self._results.exists(known.call, workspace)
        return Claim(call._replace(call=known.call), accepted)

    async def _known_or_mine(self, key: str, mine: KeyedCall) -> KeyedCall:
        for _ in range(TRIES):
            try:
                await self._bucket.create(key, mine.encode())
            except KeyExists:
                entry = await self._bucket.get(key, from_leader=True)
                if entry is not None:
                    return KeyedCall.decode(entry.value)
            else:
                return mine
        raise ConflictError("the idempotency key is changing", fix="Send the request again.")


def check_kind(call: CallHeaders) -> None:
    """Raises `InvalidError` for calls that cannot have a key."""
    if call.idempotency_key and call.kind not in _KINDS:
        raise InvalidError(
            f"{Header.IDEMPOTENCY_KEY} is for calls of kind {' and '.join(kind.value for kind in _KINDS)}, "
            f"not {call.kind.value}",
            fix="Leave the header out, or make one call for each key.",
        )


def key_of(call: CallHeaders, workspace: str) -> str:
    """Key of the record: of the function whatever its version, so that a deploy in between changes nothing."""
    function = digest([call.app, call.function])[:32]
    return f"{workspace}.{function}.{hashlib.sha256(call.idempotency_key.encode()).hexdigest()}"


def hash_of(call: CallHeaders, target: Target, given: Input) -> str:
    """What must be the same for a call to be the same."""
    about = [call.method, target.pool.parameters, call.encoding, given.blob or ""]
    return hashlib.sha256("\0".join(about).encode() + b"\0" + given.payload).hexdigest()
