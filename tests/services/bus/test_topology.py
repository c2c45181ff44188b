"""Streams, buckets and consumers become what the topology says, and stay it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.services.bus.conftest import TOPOLOGY

from squall_bus import Bus, BusSettings, ConsumerInfo, ConsumerSpec, NotFound, TopologyConflict, connect
from squall_contracts import topology
from squall_contracts.topology import StreamSpec, Topology


async def test_the_real_topology_can_be_made_twice_and_grown(settings: BusSettings) -> None:
    built = topology.build(shards=2)
    async with connect(settings, built) as bus:
        await bus.ensure_topology()
        await bus.ensure_topology()
        for stream in built.streams:
            assert (await bus.stream_info(stream.name)).messages == 0
        for bucket in built.buckets:
            assert await bus.kv(bucket.name).entries() == []
    async with connect(settings, topology.build(shards=4)) as bus:
        await bus.ensure_topology()


async def test_a_changed_limit_is_updated(settings: BusSettings, bus: Bus) -> None:
    changed = [replace(spec, max_age_s=3600) if spec.name == "LOG" else spec for spec in TOPOLOGY.streams]
    await bus.publish("log.a", b"kept")
    async with connect(settings, replace(TOPOLOGY, streams=tuple(changed))) as other:
        await other.ensure_topology()
        await other.ensure_topology()
        assert (await other.stream_info("LOG")).messages == 1


async def test_what_cannot_be_changed_is_a_conflict_that_names_the_stream(settings: BusSettings, bus: Bus) -> None:
    changed = replace(TOPOLOGY, streams=(StreamSpec(name="LOG", subjects=("log.>",), storage="memory"),), buckets=())
    async with connect(settings, changed) as other:
        with pytest.raises(TopologyConflict) as caught:
            await other.ensure_topology()
    assert caught.value.data["stream"] == "LOG"


async def test_overlapping_subjects_are_a_conflict(settings: BusSettings, bus: Bus) -> None:
    overlapping = Topology("local", 1, (StreamSpec(name="OTHER", subjects=("log.a.>",)),), ())
    async with connect(settings, overlapping) as other:
        with pytest.raises(TopologyConflict):
            await other.ensure_topology()


async def test_a_consumer_is_made_once_counted_and_deleted(bus: Bus) -> None:
    spec = ConsumerSpec(name="pool", filter_subject="first.pool.>")
    await bus.ensure_consumer("WORK", spec)
    await bus.ensure_consumer("WORK", spec)

    info = await bus.consumer_info("WORK", "pool")
    assert info == ConsumerInfo(
        name="pool",
        pending=0,
        ack_pending=0,
        waiting=0,
        ack_floor_seq=0,
        delivered_seq=0,
        filter_subject="first.pool.>",
    )
    assert await bus.delete_consumer("WORK", "pool")
    assert not await bus.delete_consumer("WORK", "pool")
    assert await bus.consumer_info("WORK", "pool") is None


async def test_a_consumer_of_a_missing_stream(bus: Bus) -> None:
    with pytest.raises(NotFound):
        await bus.ensure_consumer("NOPE", ConsumerSpec(name="x", filter_subject="first.>"))


@pytest.mark.slow
async def test_more_than_a_thousand_consumers_and_all_pages_of_their_list(bus: Bus) -> None:
    for number in range(1010):  # 1,000 is the server's default limit
        await bus.ensure_consumer("WORK", ConsumerSpec(name=f"p{number}", filter_subject=f"first.p{number}.>"))

    found = await bus.list_consumers("WORK")
    assert {info.name for info in found} == {f"p{number}" for number in range(1010)}
