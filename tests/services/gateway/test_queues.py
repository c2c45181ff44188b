"""Queues at the gateway: what becomes of items when clients go away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx
import pytest
from tests.services.gateway.world import World

from squall.http_api.protocol import FrameKind, frames
from squall.http_api.routes import Route
from squall_bus import KeyWrite, PublishUnknown
from squall_bus.kv import KeyValue
from squall_contracts.objects import QueueItem
from squall_contracts.topology import MAX_QUEUE_ITEMS
from squall_gateway.queues import Queues
from squall_gateway.takes import Place

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


async def test_takers_at_the_same_time_have_an_item_each_and_share_writes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = (await world.http.post("/v1/objects/queues", json={"name": "shared"})).json()["id"]
    items, taken = Route.QUEUE_ITEMS.format(object=queue), Route.QUEUE_TAKEN.format(object=queue)
    put = [b"%d" % number for number in range(40)]
    await world.http.post(items, content=b"".join(frames.encode(FrameKind.ENTRY, {}, item) for item in put))
    writes, write_together = list[int](), KeyValue.write_together
    asking, everybody_asks, take = list[str](), asyncio.Event(), Queues._take_with_others

    async def counted(self: KeyValue, wanted: Sequence[KeyWrite]) -> list[int]:
        writes.append(len(wanted))
        await everybody_asks.wait()
        return await write_together(self, wanted)

    async def heard(self: Queues, at: Place, subject: str, request: str, gone: asyncio.Event) -> list[QueueItem]:
        asking.append(request)
        if len(asking) == len(asked):
            everybody_asks.set()
        return await take(self, at, subject, request, gone)

    monkeypatch.setattr(KeyValue, "write_together", counted)
    monkeypatch.setattr(Queues, "_take_with_others", heard)
    # One comes twice, as after an answer that was lost; and there are two more than items.
    asked = [*(f"taker-{number}" for number in range(42)), "taker-0"]
    answers = await asyncio.gather(*(world.http.post(taken, params={"request": request}) for request in asked))
    given = [[frame.payload for frame in frames.Decoder().feed(answer.content)] for answer in answers]

    assert given[-1] == given[0]
    assert sorted(item for found in given[:-1] for item in found) == sorted(put)
    assert sorted(map(len, given[:-1])) == [0, 0, *[1] * 40]
    assert len(writes) < 20


async def test_a_shared_write_without_an_answer_gives_nobody_two_items(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = (await world.http.post("/v1/objects/queues", json={"name": "unknown"})).json()["id"]
    items, taken = Route.QUEUE_ITEMS.format(object=queue), Route.QUEUE_TAKEN.format(object=queue)
    put = [b"%d" % number for number in range(10)]
    await world.http.post(items, content=b"".join(frames.encode(FrameKind.ENTRY, {}, item) for item in put))
    lost, write_together = list[int](), KeyValue.write_together

    async def unanswered(self: KeyValue, wanted: Sequence[KeyWrite]) -> list[int]:
        await asyncio.sleep(0.2)
        done = await write_together(self, wanted)
        if len(wanted) > 2 and not lost:
            lost.append(len(wanted))
            raise PublishUnknown("the answer was lost")
        return done

    monkeypatch.setattr(KeyValue, "write_together", unanswered)
    answers = await asyncio.gather(*(world.http.post(taken, params={"request": f"t{n}"}) for n in range(10)))
    given = [frame.payload for answer in answers for frame in frames.Decoder().feed(answer.content)]
    assert lost
    assert sorted(given) == put
