"""The other workspace of a run: its token, made with the bus's own credentials as an operator would."""

from __future__ import annotations

import secrets

from squall_bus import connect
from squall_contracts import topology
from squall_contracts.functions import TOKENS, TokenRecord, token_key
from squall_service.clock import SystemClock
from squall_verify.evidence import GUEST
from squall_verify.platform import Platform


async def admit_guest(platform: Platform) -> str:
    """A token of the workspace of guests."""
    token = "sq-" + secrets.token_urlsafe(32)
    record = TokenRecord(workspace=GUEST, name="guest", scope="workspace", created_at=SystemClock().now())
    async with connect(platform.bus_settings(), topology.build()) as bus:
        await bus.kv(TOKENS).create(token_key(token.encode()), record.encode())
    return token
