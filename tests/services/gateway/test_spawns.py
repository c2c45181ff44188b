"""Spawned calls in one request: each is a call of its own; all of them are taken, or the answer is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.services.gateway.world import SHARDS, TinyAgent, World, a_generator, a_world, call_headers, error_of
from tests.support.eventually import eventually

from squall.http_api.protocol import FrameKind, Header, frames
from squall.http_api.routes import Route
from squall.ids import new_call_id, shard_of
from squall_contracts import spans, subjects
from squall_contracts.functions import pool_id

pytestmark = pytest.mark.asyncio(loop_scope="module")


def spawned(*calls: str, meta: dict[str, Any] | None = None, trace: str = "") -> bytes:
    """A frame of calls, each with its id as payload."""
    own = [[call, trace, "5:6"] for call in calls]
    told = {"calls": own, "sizes": [len(call) for call in calls], **(meta or {})}
    return frames.encode(FrameKind.SPAWNED, told, "".join(calls).encode())


def common(app: dict[str, Any], function: str = "double", **more: str) -> dict[str, str]:
    headers = call_headers(app, function, **{"kind": "spawn", **more})
    del headers[Header.CALL]
    return headers


def some_calls(count: int) -> list[str]:
    """Calls on every shard."""
    return [new_call_id(1)[:-2] + f"{n % SHARDS:02d}" for n in range(count)]


async def journal_of(world: World, pool: str) -> set[str]:
    found: set[str] = set()
    for shard in range(SHARDS):
        wanted = subjects.calls_of_pool("local", shard, pool)
        info = await world.bus.stream_info(subjects.journal_stream("local", shard), wanted)
        found |= {subject.split(".")[4] for subject in info.subjects}
    return found


async def test_calls_of_one_request_are_calls_of_their_own_and_repeating_it_adds_none(
    world: World, agent: TinyAgent
) -> None:
    app, calls = await world.publish(), some_calls(30)
    pool = pool_id(app["functions"]["double"])

    answers = [await world.http.post(Route.SPAWNS, headers=common(app), content=spawned(*calls)) for _ in range(2)]
    assert await journal_of(world, pool) == set(calls)
    await agent.serve(pool)
    await eventually(lambda: len(agent.seen) == 30)

    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"accepted": 30})] * 2
    assert {(seen.call, seen.payload.decode(), seen.index, seen.kind) for seen in agent.seen} == {
        (call, call, 0, "spawn") for call in calls
    }
    assert {shard_of(call) for call in calls} == set(range(SHARDS))


async def test_each_call_has_its_own_trace(world: World) -> None:
    app, [call] = await world.publish(), some_calls(1)
    trace, root = "a" * 32, "b" * 16
    body = spawned(call, trace=spans.traceparent(trace, root))

    await world.http.post(Route.SPAWNS, headers=common(app), content=body)
    found = (await world.http.get(f"/v1/calls/{call}/trace")).json()

    assert found["trace_id"] == trace
    assert {span["name"] for span in found["spans"]} == {"args.encode", "gateway.accept", "journal.publish"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        frames.encode(FrameKind.INPUTS, {"calls": [], "sizes": []}),
        spawned(),
        spawned("fc-nonsense"),
        spawned(new_call_id(1)) + spawned(new_call_id(1)),
        spawned(new_call_id(1))[:-1],
        spawned(new_call_id(1)[:-2] + "99"),
        spawned(new_call_id(1), meta={"calls": [[new_call_id(1)]]}),
        spawned(new_call_id(1), meta={"sizes": [1]}),
        spawned(new_call_id(1), meta={"sizes": [29, 0]}),
    ],
    ids=["empty", "no-frame", "no-call", "nothing", "no-id", "two", "cut", "shard", "text", "too-short", "too-many"],
)
async def test_a_body_that_is_not_one_frame_of_calls_is_refused(world: World, body: bytes) -> None:
    app = await world.publish()

    answer = await world.http.post(Route.SPAWNS, headers=common(app), content=body)

    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid")
    assert await journal_of(world, pool_id(app["functions"]["double"])) == set()


@pytest.mark.parametrize("more", [{"kind": "remote"}, {"blob": "ab" * 32 + ":5"}, {"idempotency_key": "k"}])
async def test_only_plain_spawned_calls_come_together(world: World, more: dict[str, str]) -> None:
    app = await world.publish()

    answer = await world.http.post(Route.SPAWNS, headers=common(app, **more), content=spawned(*some_calls(2)))

    assert (answer.status_code, Route.CALLS in error_of(answer)["fix"]) == (400, True)


async def test_a_generator_and_a_payload_above_the_inline_limit_are_refused_as_alone(world: World) -> None:
    app = await world.publish(a_generator())
    call = new_call_id(1)
    large = frames.encode(FrameKind.SPAWNED, {"calls": [[call, "", ""]], "sizes": [65537]}, b"x" * 65537)

    generator = await world.http.post(Route.SPAWNS, headers=common(app, "count"), content=spawned(call))
    other = await world.publish(name="other")
    too_large = await world.http.post(Route.SPAWNS, headers=common(other), content=large)

    assert (generator.status_code, too_large.status_code) == (400, 413)


async def test_calls_that_do_not_fit_into_the_queue_are_all_refused(tmp_path: Path) -> None:
    async with a_world(tmp_path, max_pending=3) as world:
        app, calls = await world.publish(), some_calls(4)

        refused = await world.http.post(Route.SPAWNS, headers=common(app), content=spawned(*calls[:2] * 2))
        taken = await world.http.post(Route.SPAWNS, headers=common(app), content=spawned(*calls[:3]))
        full = await world.http.post(Route.SPAWNS, headers=common(app), content=spawned(calls[3]))

        assert [answer.status_code for answer in (refused, taken, full)] == [413, 200, 429]
        assert await journal_of(world, pool_id(app["functions"]["double"])) == set(calls[:3])
