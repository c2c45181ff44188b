"""Queues at the gateway: what becomes of items when clients go away."""

from __future__ import annotations

import httpx
import pytest
from tests.services.gateway.world import World

from squall.http_api.protocol import FrameKind, frames
from squall.http_api.routes import Route
from squall_contracts.topology import MAX_QUEUE_ITEMS

EACH = 1000
"""As many as one request may bring."""

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


async def test_what_was_taken_leaves_room_and_does_not_count_at_once(world: World) -> None:
    _, other = await world.start_gateway()
    queue = (await world.http.post("/v1/objects/queues", json={"name": "full"})).json()["id"]
    items, taken = Route.QUEUE_ITEMS.format(object=queue), Route.QUEUE_TAKEN.format(object=queue)
    item = frames.encode(FrameKind.ENTRY, {}, b"job")
    for _ in range(MAX_QUEUE_ITEMS // EACH):
        assert (await world.http.post(items, content=item * EACH)).json() == {"stored": EACH}
    assert (await other.post(items, content=item)).json() == {"stored": 0}

    for _ in range(3):
        await world.http.post(taken)
        assert (await other.post(items, content=item)).json() == {"stored": 1}
    await world.http.post(taken)

    assert (await other.get(Route.QUEUE_COUNT.format(object=queue))).json() == {"count": MAX_QUEUE_ITEMS - 1}
