"""Maps: inputs in chunks, results as they come, cursors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from tests.services.gateway.world import (
    SHARDS,
    TinyAgent,
    World,
    a_function,
    call_headers,
    error_of,
    input_frames,
    sha256,
    succeeded,
)
from tests.support.eventually import eventually

from squall.http_api.protocol import FrameKind, Header, frames
from squall.ids import new_call_id, shard_of
from squall_contracts import subjects
from squall_contracts.functions import pool_id

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Results:
    """Frames of a stream, as they come."""

    def __init__(self, response: httpx.Response) -> None:
        self._chunks = response.aiter_raw()
        self._decoder = frames.Decoder()
        self._ready: list[frames.Frame] = []

    async def next(self) -> frames.Frame:
        while not self._ready:
            self._ready += self._decoder.feed(await anext(self._chunks))
        return self._ready.pop(0)

    async def take(self, count: int) -> list[frames.Frame]:
        return [await self.next() for _ in range(count)]


@asynccontextmanager
async def results_of(client: httpx.AsyncClient, call: str, cursor: int = 0) -> AsyncIterator[Results]:
    async with client.stream("GET", f"/v1/calls/{call}/results?cursor={cursor}") as response:
        assert response.status_code == 200
        yield Results(response)


async def test_every_input_of_a_map_gets_its_own_result_with_a_cursor(world: World, agent: TinyAgent) -> None:
    app, call = await world.publish(), new_call_id(SHARDS)
    await agent.serve(pool_id(app["functions"]["double"]))
    headers = call_headers(app, kind="map")
    async with results_of(world.http, call) as results:
        for first in (0, 300):
            chunk = input_frames(*(b"%d" % n for n in range(first, first + 300)), first=first)
            answer = await world.http.post(
                f"/v1/calls/{call}/inputs", headers=headers | {Header.CALL: call}, content=chunk
            )
            assert answer.json() == {"accepted": 300}
        found = await results.take(600)

    assert {frame.kind for frame in found} == {FrameKind.RESULT}
    assert {frame.meta["index"]: frame.payload for frame in found} == {n: b"%d" % n for n in range(600)}
    cursors = [frame.meta["cursor"] for frame in found]
    assert cursors == sorted(set(cursors))


async def test_a_chunk_sent_twice_adds_nothing(world: World, agent: TinyAgent) -> None:
    app, call = await world.publish(), new_call_id(SHARDS)
    chunk, headers = input_frames(b"a", b"b", b"c"), call_headers(app, kind="map")
    first = await world.http.post(f"/v1/calls/{call}/inputs", headers=headers, content=chunk)
    await agent.serve(pool_id(app["functions"]["double"]))
    await eventually(lambda: len(agent.seen) == 3)
    second = await world.http.post(f"/v1/calls/{call}/inputs", headers=headers, content=chunk)
    more = await world.http.post(f"/v1/calls/{call}/inputs", headers=headers, content=input_frames(b"c", b"d", first=2))
    await eventually(lambda: len(agent.seen) == 4)

    assert (first.json(), second.json(), more.json()) == ({"accepted": 3}, {"accepted": 3}, {"accepted": 2})
    info = await world.bus.stream_info(
        subjects.journal_stream("local", shard_of(call)),
        subjects.calls_of("local", pool_id(app["functions"]["double"]), call),
    )
    assert len(info.subjects) == 4


async def test_every_chunk_of_a_map_goes_to_the_version_of_the_first_also_through_another_gateway(world: World) -> None:
    before = await world.publish(a_function(timeout_s=30.0))
    _, other = await world.start_gateway()
    call, headers = new_call_id(SHARDS), call_headers(before, kind="spawn")
    first = await world.http.post(f"/v1/calls/{call}/inputs", headers=headers, content=input_frames(b"a"))

    after = await world.publish(a_function(timeout_s=60.0))
    later = [
        await client.post(f"/v1/calls/{call}/inputs", headers=headers, content=input_frames(b"b", first=number))
        for number, client in enumerate((world.http, other), start=1)
    ]

    assert before["functions"] != after["functions"]
    assert [answer.status_code for answer in (first, *later)] == [200, 200, 200]
    info = await world.bus.stream_info(
        subjects.journal_stream("local", shard_of(call)), subjects.calls_of("local", "*", call)
    )
    old_pool = pool_id(before["functions"]["double"])
    assert sorted(info.subjects) == [subjects.call("local", old_pool, call, number) for number in range(3)]


async def test_a_stream_resumes_after_its_cursor_on_another_gateway(world: World, agent: TinyAgent) -> None:
    app, call = await world.publish(), new_call_id(SHARDS)
    _, other = await world.start_gateway()
    await agent.serve(pool_id(app["functions"]["double"]))
    headers = call_headers(app, kind="map")
    chunk = input_frames(*(b"%d" % n for n in range(10)))
    await world.http.post(f"/v1/calls/{call}/inputs", headers=headers, content=chunk)
    async with results_of(world.http, call) as results:
        early = await results.take(4)
    async with results_of(other, call, early[-1].meta["cursor"]) as results:
        late = await results.take(6)

    assert sorted(frame.meta["index"] for frame in [*early, *late]) == list(range(10))


@pytest.mark.slow
async def test_a_silent_stream_says_why_its_inputs_wait(world: World) -> None:
    app, call = await world.publish(), new_call_id(SHARDS)
    await world.http.post(f"/v1/calls/{call}/inputs", headers=call_headers(app, kind="map"), content=input_frames(b"a"))

    async with results_of(world.http, call) as results:
        frame = await results.next()

    assert frame.kind == FrameKind.KEEPALIVE
    assert "autoscaler" in frame.meta["waiting"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"junk that is no frame", 400, "frame"),
        (b"", 400, "no inputs"),
        (input_frames(b"a")[:-1], 400, "middle of a frame"),
        (input_frames(b"a") + input_frames(b"b"), 400, "twice"),
        (frames.encode(FrameKind.RESULT, {"index": 0}), 400, "INPUT"),
        (frames.encode(FrameKind.INPUT, {"index": -1}), 400, "index"),
        (frames.encode(FrameKind.INPUT, {"index": 0, "blob": "x"}), 400, "blob"),
        (frames.encode(FrameKind.INPUT, {"index": 0}, b"x" * 65537), 413, "inline"),
        (input_frames(*[b""] * 1001), 413, "1000"),
    ],
)
async def test_a_bad_chunk_is_refused_as_a_whole(world: World, body: bytes, status: int, words: str) -> None:
    app, call = await world.publish(), new_call_id(SHARDS)

    answer = await world.http.post(f"/v1/calls/{call}/inputs", headers=call_headers(app, kind="map"), content=body)

    assert answer.status_code == status, answer.text
    assert words in error_of(answer)["message"]


async def test_results_that_were_recorded_before_the_stream_began_are_in_it(world: World) -> None:
    app, call = await world.publish(), new_call_id(SHARDS)
    agent = world.agent(lambda request: succeeded(request, b"r" * 60_000))
    await agent.serve(pool_id(app["functions"]["double"]))
    await world.http.post(
        f"/v1/calls/{call}/inputs", headers=call_headers(app, kind="map"), content=input_frames(*[b""] * 50)
    )
    await eventually(lambda: len(agent.seen) == 50)

    async with results_of(world.http, call) as results, asyncio.timeout(10):
        found = await results.take(50)
    await agent.stop()

    assert sum(len(frame.payload) for frame in found) == 3_000_000


def bulk_frame(meta: dict[str, Any], payload: bytes) -> bytes:
    return frames.encode(FrameKind.INPUTS, meta, payload)


async def test_inputs_that_share_a_frame_are_accepted_one_by_one(world: World, agent: TinyAgent) -> None:
    app = await world.publish()
    stored = sha256(b"large")
    await world.http.put(f"/v1/blobs/{stored}", content=b"large")
    call, headers = new_call_id(SHARDS), call_headers(app, kind="spawn")
    body = bulk_frame({"first": 7, "sizes": [1, 0, 2], "blobs": {"1": f"{stored}:5"}}, b"abb")

    answers = [await world.http.post(f"/v1/calls/{call}/inputs", headers=headers, content=body) for _ in range(2)]
    await agent.serve(pool_id(app["functions"]["double"]))

    await eventually(lambda: len(agent.seen) == 3)
    assert [answer.json() for answer in answers] == [{"accepted": 3}] * 2
    seen = sorted((request.index, request.payload, request.blob, request.kind) for request in agent.seen)
    assert seen == [(7, b"a", None, "spawn"), (8, b"", f"{stored}:5", "spawn"), (9, b"bb", None, "spawn")]


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"first": 0, "sizes": [1]},
        {"first": -1, "sizes": [2]},
        {"first": 10_000_000, "sizes": [2]},
        {"first": 0, "sizes": [3, -1]},
        {"first": 0, "sizes": [1, 1], "blobs": {"0": "ab" * 32 + ":5"}},
        {"first": 0, "sizes": [2, 0], "blobs": {"2": "ab" * 32 + ":5"}},
        {"first": 0, "sizes": [2, 0], "blobs": {"1": "nonsense"}},
        {"first": 0, "sizes": [0] * 1001},
    ],
)
async def test_a_shared_frame_that_contradicts_itself_is_refused(world: World, meta: dict[str, Any]) -> None:
    app = await world.publish()
    answer = await world.http.post(
        f"/v1/calls/{new_call_id(SHARDS)}/inputs", headers=call_headers(app), content=bulk_frame(meta, b"ab")
    )
    assert answer.status_code in (400, 413)
