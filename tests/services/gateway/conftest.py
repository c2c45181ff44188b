"""One gateway on a bus server of its own for each test module; tests tell their apps apart by id."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.services.gateway.world import TinyAgent, World, a_world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with a_world(tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def agent(world: World) -> AsyncIterator[TinyAgent]:
    agent = world.agent()
    yield agent
    await agent.stop()
