"""Dicts and queues when an answer is lost on its way: the same request again does nothing twice, and gets the same."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from tests.services.gateway.world import World

from squall.http_api.protocol import FrameKind, frames
from squall.http_api.routes import Route
from squall_bus import Entry, KeyWrite, PublishUnknown
from squall_bus.kv import KeyValue
from squall_contracts import subjects
from squall_contracts.objects import DICTS, TAKES, QueueFront, QueueItem, front_key, partition_token
from squall_gateway.auth import create_token
from squall_gateway.dicts import Dicts, Op
from squall_gateway.queues import Queues
from squall_gateway.takes import Front, Place, Takes
from squall_service.clock import SystemClock

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def made(http: httpx.AsyncClient, kind: str, name: str) -> str:
    return str((await http.post(f"/v1/objects/{kind}", json={"name": name})).json()["id"])


async def op(http: httpx.AsyncClient, state: str, what: str, key: str, value: bytes = b"", **meta: Any) -> Any:
    """One operation; its answer."""
    sent = {"op": what, "key": base64.b64encode(key.encode()).decode(), **meta}
    answer = await http.post(Route.DICT_OPS.format(object=state), content=frames.encode(FrameKind.ENTRY, sent, value))
    assert answer.status_code == 200, answer.text
    [frame] = frames.Decoder().feed(answer.content)
    return frame


async def put(http: httpx.AsyncClient, queue: str, *items: bytes) -> None:
    body = b"".join(frames.encode(FrameKind.ENTRY, {}, item) for item in items)
    assert (await http.post(Route.QUEUE_ITEMS.format(object=queue), content=body)).json() == {"stored": len(items)}


async def take(http: httpx.AsyncClient, queue: str, most: int, request: str = "", wait: float = 0) -> list[bytes]:
    asked = {"most": most, "request": request, "wait": wait}
    answer = await http.post(Route.QUEUE_TAKEN.format(object=queue), params=asked)
    assert answer.status_code == 200, answer.text
    return [bytes(frame.payload) for frame in frames.Decoder().feed(answer.content)]


async def count(http: httpx.AsyncClient, queue: str, **asked: Any) -> int:
    return int((await http.get(Route.QUEUE_COUNT.format(object=queue), params=asked)).json()["count"])


async def test_a_take_that_is_asked_for_again_gives_the_same_items_and_takes_no_others(world: World) -> None:
    queue = await made(world.http, "queues", "repeated")
    _, other = await world.start_gateway()
    await put(world.http, queue, b"1", b"2", b"3", b"4", b"5")

    assert await take(world.http, queue, 2, "r1") == [b"1", b"2"]
    assert await take(other, queue, 2, "r1") == [b"1", b"2"], "through another gateway too"
    assert await take(other, queue, 1, "r2") == [b"3"]
    assert await take(world.http, queue, 5) == [b"4", b"5"], "what others took through another gateway is theirs"
    assert await take(world.http, queue, 2, "r1") == [b"1", b"2"], "also when nothing is left"
    assert await take(world.http, queue, 2, "r3") == []
    assert await count(world.http, queue) == 0

    refused = await world.http.post(Route.QUEUE_TAKEN.format(object=queue), params={"request": "a.b"})
    assert refused.status_code == 400


async def test_the_same_id_of_requests_for_other_queues_and_of_other_workspaces_is_another_request(
    world: World,
) -> None:
    token = await create_token(world.bus, "else", "workspace", "x", now=1.0)
    stranger = await world.client(str(world.http.base_url), token)
    queues = [(http, await made(http, "queues", f"ids-{n}")) for http in (world.http, stranger) for n in range(2)]

    for http, queue in (*queues, *queues):
        path, body = Route.QUEUE_ITEMS.format(object=queue), frames.encode(FrameKind.ENTRY, {}, queue.encode())
        for partition in ("a", "b"):
            answer = await http.post(path, content=body, params={"request": "job-1", "partition": partition})
            assert answer.json() == {"stored": 1}

    assert [await count(http, queue, total=1) for http, queue in queues] == [2, 2, 2, 2], "and each of them once"


class LateTakes(Takes):
    """Its first write has no answer, and comes into effect after somebody has looked for its receipt."""

    late: Callable[[], Awaitable[Front]] | None = None
    tried = False

    async def take(self, place: Place, front: Front, through: int, request: str, items: Sequence[QueueItem]) -> Front:
        if self.tried:
            return await super().take(place, front, through, request, items)
        self.tried, self.late = True, partial(super().take, place, front, through, request, items)
        raise PublishUnknown("no answer")

    async def given(self, place: Place, request: str) -> list[QueueItem] | None:
        found = await super().given(place, request)
        if self.late is not None:
            late, self.late = self.late, None
            await late()
        return found


@pytest.mark.parametrize("items", [2, 3])
async def test_items_are_not_lost_when_a_take_without_an_answer_comes_late(world: World, items: int) -> None:
    queue = await made(world.http, "queues", f"late-{items}")
    await put(world.http, queue, *(b"%d" % number for number in range(items)))
    async with asyncio.TaskGroup() as tasks:
        queues = Queues(world.bus, SystemClock(), lambda work, name: tasks.create_task(work, name=name))
        queues._takes = LateTakes(world.bus)

        taken = await queues.take(("main", queue, ""), 2, 0.0, asyncio.Event(), "r1")

    assert [item.value for item in taken] == [b"0", b"1"]


class LateBucket:
    """As `LateTakes`: the write comes into effect between the two looks that follow it."""

    def __init__(self, bucket: KeyValue) -> None:
        self._bucket, self._late, self._looks = bucket, [], 0  # type: ignore[var-annotated]

    async def write_together(self, writes: Sequence[KeyWrite]) -> list[int]:
        if self._looks:
            return await self._bucket.write_together(writes)
        self._late = list(writes)
        raise PublishUnknown("no answer")

    async def get(self, key: str, *, from_leader: bool) -> Entry | None:
        return await self._look(partial(self._bucket.get, key, from_leader=from_leader))

    async def revision(self, key: str) -> tuple[int, bool]:
        return await self._look(partial(self._bucket.revision, key))

    async def _look(self, look: Callable[[], Awaitable[Any]]) -> Any:
        self._looks += 1
        if self._looks == 2:
            await self._bucket.write_together(self._late)
        return await look()


async def test_a_claim_without_an_answer_that_comes_late_is_the_requests_own(world: World) -> None:
    state, bucket = await made(world.http, "dicts", "late"), LateBucket(world.bus.kv(DICTS))
    dicts = Dicts(SimpleNamespace(kv=lambda _: bucket), None, SystemClock())  # type: ignore[arg-type]

    [outcome] = await dicts.do("main", state, [Op("put", b"k", b"v", None, True, "r1")])

    assert outcome.meta == {"put": True}


async def test_items_that_a_dead_gateway_had_taken_are_not_given_to_others(world: World) -> None:
    queue = await made(world.http, "queues", "half-way")
    await put(world.http, queue, b"1", b"2", b"3")
    assert await take(world.http, queue, 1, "r1") == [b"1"]
    # As it is when a gateway dies between the take and the removal: `2` is taken, and still there.
    stream, bus = subjects.queues_stream("local"), world.bus
    [subject] = [each for each in (await bus.stream_info(stream, "queues.local.>")).subjects if queue in each]
    *_, second, _ = [stored.seq async for stored in bus.read(stream, subject)]
    front = front_key(subject.split(".")[2], queue, partition_token(""))
    await bus.kv(TAKES).put(front, QueueFront(second).encode())

    listed = await world.http.get(Route.QUEUE_ITEMS.format(object=queue))
    assert [frame.payload for frame in frames.Decoder().feed(listed.content)] == [b"3", b""]
    assert await count(world.http, queue) == 1
    assert await take(world.http, queue, 5) == [b"3"]


async def test_large_items_come_in_several_takes(world: World) -> None:
    queue = await made(world.http, "queues", "large")
    items = [bytes([number]) * 60_000 for number in range(20)]
    await put(world.http, queue, *items)
    found: list[bytes] = []
    while some := await take(world.http, queue, 20, f"large-{len(found)}"):
        assert some == await take(world.http, queue, 20, f"large-{len(found)}")
        found += some
    assert found == items


async def test_a_pop_that_is_asked_for_again_gives_the_same_value_and_takes_no_other(world: World) -> None:
    state = await made(world.http, "dicts", "popped")
    await op(world.http, state, "put", "k", b"first", request="p1")
    assert (await op(world.http, state, "pop", "k", request="r1")).payload == b"first"
    assert (await op(world.http, state, "pop", "k", request="r1")).payload == b"first"

    await op(world.http, state, "put", "k", b"second", request="p2")
    assert (await op(world.http, state, "pop", "k", request="r1")).payload == b"first", "and leaves the second there"
    assert (await op(world.http, state, "get", "k")).payload == b"second"
    assert (await op(world.http, state, "pop", "k", request="r2")).payload == b"second"
    assert (await op(world.http, state, "pop", "k", request="r3")).meta["found"] is False


async def test_a_claim_that_is_asked_for_again_is_answered_as_the_first_time(world: World) -> None:
    state = await made(world.http, "dicts", "claimed")

    async def claim(request: str) -> bool:
        return bool(
            (await op(world.http, state, "put", "k", request.encode(), absent=True, request=request)).meta["put"]
        )

    assert [await claim("r1"), await claim("r1"), await claim("r2")] == [True, True, False]
    await op(world.http, state, "pop", "k", request="p1")
    assert await claim("r1") is True
    assert (await op(world.http, state, "get", "k")).meta["found"] is False, "its value was popped, and stays away"
    assert [await claim("r3"), await claim("r1")] == [True, True]
    assert (await op(world.http, state, "get", "k")).payload == b"r3"


async def test_a_put_that_is_asked_for_again_does_not_replace_what_was_put_since(world: World) -> None:
    state = await made(world.http, "dicts", "put-again")
    await op(world.http, state, "put", "k", b"first", request="r1")
    await op(world.http, state, "put", "k", b"second", request="r2")
    await op(world.http, state, "put", "k", b"first", request="r1")

    assert (await op(world.http, state, "get", "k")).payload == b"second"
    await op(world.http, state, "put", "other", b"first", request="r1")
    assert (await op(world.http, state, "get", "other")).payload == b"first", (
        "one id for several keys is several requests"
    )


async def test_takers_at_two_gateways_get_every_item_once_and_none_is_starved(world: World) -> None:
    queue = await made(world.http, "queues", "contended")
    _, other = await world.start_gateway()
    items = [b"%d" % number for number in range(80)]
    await put(world.http, queue, *items)

    async def taker(http: httpx.AsyncClient) -> list[bytes]:
        found: list[bytes] = []
        while some := await take(http, queue, 1, f"c{id(found):x}-{len(found)}"):
            found += some
        return found

    shares = await asyncio.gather(*(taker(http) for http in (world.http, other) for _ in range(3)))
    assert sorted(item for share in shares for item in share) == sorted(items)
    assert all(any(share) for share in (shares[:3], shares[3:])), "both gateways had their part"
