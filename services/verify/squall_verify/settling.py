"""The liveness phase: after the last fault was healed, waits until nothing is queued or leased, and new calls work."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import TypeVar

from squall_bus import Bus, BusError
from squall_contracts import subjects
from squall_contracts.nodes import CONTAINERS, ContainerClaim
from squall_service.clock import SystemClock

T = TypeVar("T")
POLL_S = 0.25
_CLOCK = SystemClock()


async def unsettled(bus: Bus) -> dict[str, tuple[int, int]]:
    """(pending, leased) of every queue that has any."""
    found: dict[str, tuple[int, int]] = {}
    for shard in range(bus.topology.shards):
        stream = subjects.work_stream(bus.topology.region, shard)
        for consumer in await bus.list_consumers(stream):
            if consumer.pending or consumer.ack_pending:
                found[f"{stream}/{consumer.name}"] = (consumer.pending, consumer.ack_pending)
    return found


async def unended(bus: Bus) -> dict[str, tuple[int, int]]:
    """Queues that are not empty, and how many accepted inputs of each shard have no result (pending, 0)."""
    found = await unsettled(bus)
    for shard in range(bus.topology.shards):
        journal = subjects.journal_stream(bus.topology.region, shard)
        accepted = (await bus.stream_info(journal)).messages
        ended = (await bus.stream_info(subjects.results_stream(bus.topology.region, shard))).messages
        if accepted > ended:
            found[journal] = (accepted - ended, 0)
    return found


async def containers(bus: Bus) -> dict[str, int]:
    """Claims of each pool."""
    found: dict[str, int] = defaultdict(int)
    for entry in await bus.kv(CONTAINERS).entries():
        found[ContainerClaim.decode(entry.value).pool] += 1
    return dict(found)


async def until_empty(
    bus: Bus, look: Callable[[Bus], Awaitable[dict[str, T]]], within_s: float
) -> tuple[float | None, dict[str, T]]:
    """When there was nothing left, or None; and what was left in the end."""
    until = _CLOCK.monotonic() + within_s
    left: dict[str, T] = {}
    while _CLOCK.monotonic() < until:
        try:
            left = await look(bus)
        except BusError:
            await asyncio.sleep(POLL_S)
            continue
        if not left:
            return _CLOCK.now(), {}
        await asyncio.sleep(POLL_S)
    return None, left
