"""What must hold after any fault, read from the bus: nothing waits, every accepted input has exactly one result."""

from __future__ import annotations

import asyncio

from tests.support.platform import Platform

from squall_bus import Bus, connect
from squall_contracts import subjects, topology

SETTLED_S = 30.0
POLL_S = 0.1
REGION = "local"
SHARDS = 4

Input = tuple[str, int]
"""Call and index."""


def check(platform: Platform) -> None:
    """Waits until the queue is empty, then compares what was accepted with what was recorded."""
    asyncio.run(_check(platform))


async def _check(platform: Platform) -> None:
    async with connect(platform.bus_settings(), topology.build()) as bus:
        await _settled(bus)
        accepted, recorded = await _inputs(bus, "calls"), await _inputs(bus, "results")
        assert accepted, "the journal is empty"
        lost, phantoms = set(accepted) - set(recorded), set(recorded) - set(accepted)
        assert not lost, f"accepted, and without a result: {sorted(lost)[:10]} ({len(lost)})"
        assert not phantoms, f"results of calls that nobody accepted: {sorted(phantoms)[:10]} ({len(phantoms)})"
        repeated = [which for which, count in recorded.items() if count != 1]
        assert not repeated, f"more than one result: {repeated[:10]}"


async def _settled(bus: Bus) -> None:
    """Nothing is queued and nothing is leased."""
    loop = asyncio.get_running_loop()
    until = loop.time() + SETTLED_S
    while waiting := await unsettled(bus):
        assert loop.time() < until, f"still waiting or leased after {SETTLED_S} s: {waiting}"
        await asyncio.sleep(POLL_S)


async def unsettled(bus: Bus) -> dict[str, tuple[int, int]]:
    """(pending, leased) of every pool that has any."""
    found: dict[str, tuple[int, int]] = {}
    for shard in range(SHARDS):
        stream = subjects.work_stream(REGION, shard)
        for consumer in await bus.list_consumers(stream):
            if consumer.pending or consumer.ack_pending:
                found[f"{stream}/{consumer.name}"] = (consumer.pending, consumer.ack_pending)
    return found


async def _inputs(bus: Bus, kind: str) -> dict[Input, int]:
    stream_of = subjects.journal_stream if kind == "calls" else subjects.results_stream
    found: dict[Input, int] = {}
    for shard in range(SHARDS):
        info = await bus.stream_info(stream_of(REGION, shard), subjects_filter=f"{kind}.{REGION}.{shard:02d}.>")
        for subject, count in info.subjects.items():
            parsed = subjects.parse_call(subject)
            key = (parsed.call, parsed.index)
            found[key] = found.get(key, 0) + count
    return found
