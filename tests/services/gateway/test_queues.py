"""Queues at the gateway: what becomes of items when clients go away."""

from __future__ import annotations

import httpx
import pytest
from tests.services.gateway.world import World

from squall.http_api import FrameKind, Route, frames

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_taker_that_has_gone_takes_nothing(world: World) -> None:
    made = await world.http.post("/v1/objects/queues", json={"name": "jobs"})
    queue = made.json()["id"]
    taken = Route.QUEUE_TAKEN.format(object=queue)
    with pytest.raises(httpx.ReadTimeout):
        await world.http.post(taken, params={"wait": 60}, timeout=0.5)
    assert (await world.http.get(Route.QUEUE_COUNT.format(object=queue))).json() == {"count": 0}

    item = frames.encode(FrameKind.ENTRY, {}, b"job")
    await world.http.post(Route.QUEUE_ITEMS.format(object=queue), content=item)

    there = frames.Decoder().feed((await world.http.post(taken, params={"wait": 5})).content)
    assert [frame.payload for frame in there] == [b"job"]
