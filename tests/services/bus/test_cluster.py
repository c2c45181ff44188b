"""Three servers, replicated streams: a server may die at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.services.bus.conftest import TOPOLOGY
from tests.services.bus.test_reconnects import Load
from tests.support.eventually import eventually
from tests.support.nats_server import NatsCluster

from squall_bus import Bus, BusSettings, Delivery, Published, Record, connect
from squall_bus.records import ConsumerSpec

pytestmark = pytest.mark.slow

REPLICATED = replace(
    TOPOLOGY,
    streams=tuple(replace(spec, replicas=1 if spec.persist_async or spec.sources else 3) for spec in TOPOLOGY.streams),
    buckets=tuple(replace(spec, replicas=3) for spec in TOPOLOGY.buckets),
)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[NatsCluster]:
    async with NatsCluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def bus(cluster: NatsCluster) -> AsyncIterator[Bus]:
    settings = BusSettings(url=cluster.url, connect_timeout_s=20)
    async with connect(settings, REPLICATED) as bus:
        await bus.ensure_topology()
        yield bus


async def test_batches_and_refusals_are_the_same_with_replicas(bus: Bus) -> None:
    await bus.publish("first.3", b"taken", msg_id="a")

    outcomes = await bus.publish_batch([Record(f"first.{n}", str(n).encode()) for n in range(50)])

    assert [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, Published)] == [3]
    for number in (0, 25, 49):
        stored = await bus.get_last("FIRST", f"first.{number}", from_leader=True)
        assert stored is not None
        assert stored.data == str(number).encode()


async def test_no_acknowledged_record_is_lost_when_servers_die_one_after_the_other(
    bus: Bus, cluster: NatsCluster
) -> None:
    load = Load(bus, "first")
    async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
        for _ in range(32):
            tasks.create_task(load.publish_until_stopped())
        for server in cluster.servers:
            before = len(load.acked)
            await eventually(lambda: len(load.acked) > before + 200, within_s=30)  # noqa: B023
            await server.restart()
        before = len(load.acked)
        await eventually(lambda: len(load.acked) > before + 200, within_s=30)
        load.stopping = True

    async def all_there() -> bool:
        stored = {record.subject: record.seq async for record in bus.read("FIRST", follow=True, idle_timeout_s=1)}
        return {s: q for s, q in load.acked.items() if stored.get(s) != q} == {}

    assert load.failed == []
    assert await all_there()


async def test_a_pull_goes_on_when_servers_die_one_after_the_other(bus: Bus, cluster: NatsCluster) -> None:
    """On the replicated stream itself: a stream that sources another one stands still for 40 s (server 2.15.1)
    when the leader of its source dies, until somebody restarts its source."""
    await bus.ensure_consumer("FIRST", ConsumerSpec(name="w", filter_subject="first.>", ack_wait_s=1))
    seen: set[str] = set()

    def take(delivery: Delivery) -> None:
        seen.add(delivery.subject)
        delivery.ack()
        puller.want(32)

    load = Load(bus, "first")
    async with await bus.pull("FIRST", "w", take, expires_s=2) as puller, asyncio.timeout(100):
        puller.want(32)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(load.publish_until_stopped())
            for server in cluster.servers:
                before = len(seen)
                await eventually(lambda: len(seen) > before + 50, within_s=30)  # noqa: B023
                await server.restart()
            load.stopping = True
        await eventually(lambda: seen >= set(load.acked), within_s=30)
