"""A bus on a server of its own, and a builder on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.services.scheduler.world import a_bus
from tests.support.nats_server import NatsServer

from squall_bus import Bus


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Bus]:
    async with NatsServer(tmp_path / "nats") as server, a_bus(server) as bus:
        yield bus
