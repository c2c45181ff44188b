"""The JetStream API: requests that may be repeated, and are, until the time is up."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from squall_bus.errors import BusUnavailable, from_server
from squall_bus.link import Link
from squall_bus.records import Message

TIMEOUT_S = 5.0
ATTEMPT_S = 3.0
"""A request that a dying server swallowed is asked again."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.01, 0.25
NS = 1_000_000_000


def nanoseconds(seconds: float) -> int:
    return round(seconds * NS)


async def ask(link: Link, subject: str, data: bytes = b"", timeout_s: float = TIMEOUT_S) -> Message:
    """Ask until somebody answers; BusUnavailable when nobody did in time. Only for what may happen twice."""
    until = link.loop.time() + timeout_s
    pause = FIRST_PAUSE_S
    while True:
        left = until - link.loop.time()
        try:
            return await link.request(subject, data, timeout_s=max(0.0, min(left, ATTEMPT_S)))
        except BusUnavailable:
            if until - link.loop.time() <= pause:
                raise
        await asyncio.sleep(pause)
        pause = min(pause * 2, LAST_PAUSE_S)


async def api(
    link: Link, command: str, body: dict[str, Any] | None = None, timeout_s: float = TIMEOUT_S
) -> dict[str, Any]:
    """One call of `$JS.API`; the server's refusal is raised as one of our errors."""
    until = link.loop.time() + timeout_s
    data = json.dumps(body).encode() if body is not None else b""
    pause = FIRST_PAUSE_S
    while True:
        message = await ask(link, f"$JS.API.{command}", data, max(0.0, until - link.loop.time()))
        answer: dict[str, Any] = json.loads(message.data)
        if "error" not in answer:
            return answer
        error = from_server(answer["error"], command=command)
        if not isinstance(error, BusUnavailable) or until - link.loop.time() <= pause:
            raise error
        await asyncio.sleep(pause)
        pause = min(pause * 2, LAST_PAUSE_S)
