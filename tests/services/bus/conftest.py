"""A real nats-server for each test, and a small topology that has one stream of every kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.nats_server import NatsServer

from squall_bus import Bus, BusSettings, connect
from squall_contracts.topology import BucketSpec, StreamSpec, Topology

TOPOLOGY = Topology(
    region="local",
    shards=1,
    streams=(
        StreamSpec(
            name="FIRST",
            subjects=("first.>",),
            max_msgs_per_subject=1,
            discard="new",
            discard_new_per_subject=True,
            allow_msg_ttl=True,
            allow_atomic=True,
            duplicate_window_s=2,
            max_consumers=100,
        ),
        StreamSpec(name="LOG", subjects=("log.>",), allow_atomic=True, max_consumers=100),
        StreamSpec(name="PLAIN", subjects=("plain.>",), max_consumers=100),
        StreamSpec(name="HINTS", subjects=("hints.>",), persist_async=True, max_consumers=100),
        StreamSpec(name="WORK", retention="workqueue", sources=("FIRST",), allow_msg_ttl=True, max_consumers=5000),
        StreamSpec(name="SMALL", subjects=("small.>",), max_bytes=4096, discard="new", max_consumers=10),
    ),
    buckets=(
        BucketSpec(name="config"),
        BucketSpec(name="state", allow_atomic=True),
        BucketSpec(name="beats", storage="memory", ttl_s=2),
        BucketSpec(name="leases", storage="memory", ttl_s=10),
    ),
)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def settings(server: NatsServer) -> BusSettings:
    return BusSettings(url=server.url)


@pytest.fixture
async def bus(settings: BusSettings) -> AsyncIterator[Bus]:
    async with connect(settings, TOPOLOGY) as bus:
        await bus.ensure_topology()
        yield bus
