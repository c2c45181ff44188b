"""Streams of which one bus server has the only copy: events, logs and spans. When it is away nobody waits for them
long, and what does not depend on them goes on."""

from __future__ import annotations

import asyncio

from squall.errors import ServiceError
from squall_bus import Bus, BusUnavailable, NotFound

PATIENCE_S = 3.0


class CopyAwayError(ServiceError):
    """Nobody answers for such a stream."""

    fix = "Start the bus server that has them again. Calls and their results are elsewhere, and not concerned."


async def check_copy(bus: Bus, stream: str, what: str) -> None:
    """Raises `CopyAwayError` when the stream cannot be read now; `what` says what is in it."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            await bus.stream_info(stream)
    except (TimeoutError, BusUnavailable, NotFound) as error:
        raise CopyAwayError(f"{what} cannot be read: no bus server that is up has them") from error
