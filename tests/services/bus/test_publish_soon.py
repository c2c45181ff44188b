"""Publishing without waiting: batched, bounded, complete when flushed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.services.bus.conftest import TOPOLOGY
from tests.support.eventually import eventually
from tests.support.nats_server import NatsServer

from squall_bus import Bus, BusSettings, NotFound, connect
from squall_bus.soon import MAX_BUFFERED


@pytest.mark.parametrize(("stem", "stream"), [("hints", "HINTS"), ("log", "LOG")])
async def test_everything_is_stored_in_order_after_a_flush(bus: Bus, stem: str, stream: str) -> None:
    for number in range(3000):
        bus.publish_soon(f"{stem}.{number % 7}", str(number).encode(), {"n": str(number)})

    assert await bus.flush()
    assert [int(stored.data) async for stored in bus.read(stream)] == list(range(3000))
    assert bus.stats.soon_published == 3000


async def test_it_is_stored_soon_without_a_flush(bus: Bus) -> None:
    bus.publish_soon("hints.a", b"x")

    async def stored() -> bool:
        return await bus.get_last("HINTS", "hints.a") is not None

    await eventually(stored, within_s=1)


async def test_a_stream_says_how_long_its_records_wait_for_others(settings: BusSettings, bus: Bus) -> None:
    patient = replace(TOPOLOGY, streams=tuple(replace(spec, soon_s=3600) for spec in TOPOLOGY.streams))
    async with connect(settings, patient) as other:
        other.publish_soon("hints.a", b"first")
        bus.publish_soon("hints.b", b"in no company")
        await eventually(lambda: bus.stats.soon_published == 1)
        assert other.stats.soon_published == 0

        other.publish_soon("hints.a", b"second")
        assert await other.flush()
    assert [stored.data async for stored in bus.read("HINTS")] == [b"in no company", b"first", b"second"]


async def test_a_full_buffer_drops_the_oldest_and_counts_them(bus: Bus, server: NatsServer) -> None:
    await server.kill()
    await eventually(lambda: not bus.connected)
    for number in range(MAX_BUFFERED + 10):
        bus.publish_soon("hints.a", str(number).encode())
    assert bus.stats.soon_dropped == 10
    assert not await bus.flush(0.05)

    await server.start()
    await eventually(lambda: bus.connected)
    assert await bus.flush(20)
    first = await anext(aiter(bus.read("HINTS")))
    assert first.data == b"10"


@pytest.mark.slow
async def test_a_restart_loses_nothing_that_was_buffered(bus: Bus, server: NatsServer) -> None:
    for number in range(5000):
        bus.publish_soon("log.a", str(number).encode(), msg_id=f"m{number}")
        if number == 2500:
            await eventually(lambda: bus.stats.soon_published > 0)
            await server.restart()

    await eventually(lambda: bus.connected)
    assert await bus.flush(20)
    assert sorted({int(stored.data) async for stored in bus.read("LOG")}) == list(range(5000))


async def test_one_bad_record_does_not_take_its_batch_with_it(bus: Bus) -> None:
    await bus.publish("first.3", b"taken")
    for number in range(20):
        bus.publish_soon(f"first.{number}", b"x")

    assert await bus.flush()
    assert (await bus.stream_info("FIRST")).messages == 20


async def test_a_wrong_subject_is_the_callers_error(bus: Bus) -> None:
    with pytest.raises(NotFound):
        bus.publish_soon("nowhere.a", b"")
