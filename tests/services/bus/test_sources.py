"""A stream that takes over another one, and a server that has given up on that for a while."""

from __future__ import annotations

from dataclasses import replace

from tests.services.bus.conftest import TOPOLOGY
from tests.support.eventually import eventually

from squall_bus import Bus, BusSettings, connect

QUEUE_ONLY = replace(TOPOLOGY, streams=tuple(spec for spec in TOPOLOGY.streams if spec.name == "WORK"), buckets=())


async def stored(bus: Bus) -> list[str]:
    return sorted((await bus.stream_info("WORK", ">")).subjects)


async def test_a_source_that_the_server_waits_with_begins_at_once_when_told(settings: BusSettings) -> None:
    async with connect(settings, QUEUE_ONLY) as early:
        await early.ensure_topology()

        async def has_given_up() -> bool:
            return "not found" in (await early.stream_info("WORK")).sources["FIRST"].error

        await eventually(has_given_up)
    async with connect(settings, TOPOLOGY) as bus:
        await bus.ensure_topology()
        for number in range(10):
            await bus.publish(f"first.{number}", b"")
        waiting = (await bus.stream_info("WORK")).sources["FIRST"]

        await bus.restart_source("WORK", "FIRST", 8)

        await eventually(lambda: _is(bus, ["first.7", "first.8", "first.9"]))
        info = (await bus.stream_info("WORK")).sources["FIRST"]
        assert (waiting.lag, waiting.seq, waiting.silent_s) == (0, 0, None)
        assert (info.seq, info.error) == (10, "")


async def test_a_restarted_source_goes_on_where_it_was_after_another_start_of_the_services(
    bus: Bus, settings: BusSettings
) -> None:
    for number in range(4):
        await bus.publish(f"first.{number}", b"")
    await eventually(lambda: _is(bus, ["first.0", "first.1", "first.2", "first.3"]))
    await bus.purge("WORK", ">")

    await bus.restart_source("WORK", "FIRST", 5)
    await bus.publish("first.4", b"")
    await eventually(lambda: _is(bus, ["first.4"]))
    async with connect(settings, TOPOLOGY) as other:
        await other.ensure_topology()
    await bus.restart_source("WORK", "FIRST", 6)
    await bus.publish("first.5", b"")

    await eventually(lambda: _is(bus, ["first.4", "first.5"]))


async def _is(bus: Bus, wanted: list[str]) -> bool:
    return await stored(bus) == wanted
