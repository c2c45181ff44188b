"""A real bus for each test, with the topology of production on two shards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.services.gpu_agent.scene import Scene
from tests.support.nats_server import NatsServer

from squall_bus import BusSettings, Message, connect
from squall_contracts import topology
from squall_contracts.calls import CallResult

SHARDS = 2


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def scene(server: NatsServer, tmp_path: Path) -> AsyncIterator[Scene]:
    layout = topology.build("local", SHARDS)
    async with connect(BusSettings(url=server.url, shards=SHARDS), layout) as bus:
        await bus.ensure_topology()
        scene = Scene(bus, tmp_path / "blobs", tmp_path)

        def on_reply(message: Message) -> None:
            result = CallResult.decode(message.data)
            scene.replies.setdefault(result.call, []).append(result)

        await bus.subscribe("reply.*", on_reply)
        yield scene
