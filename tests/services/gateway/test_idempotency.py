"""Idempotency keys: one call for each key, however often, wherever and when it is asked for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.services.gateway.world import (
    SHARDS,
    TinyAgent,
    World,
    a_function,
    a_generator,
    a_world,
    call_headers,
    error_of,
    input_frames,
    only_frame,
    sha256,
)

from squall.http_api.protocol import Header
from squall.ids import new_call_id, shard_of
from squall_contracts import subjects
from squall_contracts.calls import KeyedCall
from squall_contracts.functions import pool_id
from squall_gateway.auth import create_token

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def inputs_of(world: World, pool: str) -> int:
    """How many were accepted."""
    total = 0
    for shard in range(SHARDS):
        wanted = subjects.calls_of_pool("local", shard, pool)
        total += len((await world.bus.stream_info(subjects.journal_stream("local", shard), wanted)).subjects)
    return total


async def spawn(
    http: httpx.AsyncClient, app: dict[str, Any], key: str, content: bytes = b"x", **more: str
) -> httpx.Response:
    headers = call_headers(app, kind="spawn", idempotency_key=key, **more)
    return await http.post("/v1/calls?wait=0", headers=headers, content=content)


async def test_the_same_key_and_payload_is_the_same_call_also_at_once_and_on_two_gateways(world: World) -> None:
    app = await world.publish()
    _, other = await world.start_gateway()

    answers = await asyncio.gather(*(spawn(http, app, "order 17") for http in [world.http, other] * 10))

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["call"] for answer in answers}) == 1
    assert await inputs_of(world, pool_id(app["functions"]["double"])) == 1


async def test_a_repeat_of_the_same_request_finds_its_call_when_the_journal_has_forgotten_it(
    world: World, agent: TinyAgent
) -> None:
    app, call = await world.publish(), new_call_id(SHARDS)
    pool = pool_id(app["functions"]["double"])
    await agent.serve(pool)
    headers = call_headers(app, kind="remote", idempotency_key="order-16", call=call)
    first = await world.http.post("/v1/calls?wait=20", headers=headers, content=b"x")
    await world.bus.purge(subjects.journal_stream("local", shard_of(call)), subjects.calls_of("local", pool, call))

    again = await world.http.post("/v1/calls?wait=20", headers=headers, content=b"x")

    assert [only_frame(answer.content).meta["index"] for answer in (first, again)] == [0, 0]
    assert await inputs_of(world, pool) == 0


async def test_another_payload_under_the_same_key_is_refused(world: World) -> None:
    app = await world.publish()
    first = await spawn(world.http, app, "order-18")

    refused = await spawn(world.http, app, "order-18", b"y")

    assert refused.status_code == 409
    assert error_of(refused) == error_of(refused) | {
        "code": "idempotency_conflict",
        "data": {"call": first.json()["call"]},
    }
    assert await inputs_of(world, pool_id(app["functions"]["double"])) == 1


async def test_keys_of_other_functions_and_workspaces_are_other_keys(world: World) -> None:
    app = await world.publish(a_function("one"), a_function("two"))
    token = await create_token(world.bus, "other", "workspace", "test", now=1.0)
    stranger = await world.client(str(world.http.base_url), token)
    answer = await stranger.post(
        "/v1/apps",
        json={"name": "theirs", "mode": "detached", "functions": [one_wire()]},
    )
    theirs = answer.json()

    calls = [
        (await world.http.post("/v1/calls", headers=call_headers(app, "one", kind="spawn", idempotency_key="k"))),
        (await world.http.post("/v1/calls", headers=call_headers(app, "two", kind="spawn", idempotency_key="k"))),
        (await stranger.post("/v1/calls", headers=call_headers(theirs, "one", kind="spawn", idempotency_key="k"))),
    ]

    assert len({call.json()["call"] for call in calls}) == 3


def one_wire() -> Any:
    from squall.spec import to_wire

    return to_wire(a_function("one"))


async def test_a_repeated_request_that_waits_gets_the_result_of_the_first(world: World, agent: TinyAgent) -> None:
    app = await world.publish()
    await agent.serve(pool_id(app["functions"]["double"]))

    async def ask() -> httpx.Response:
        headers = call_headers(app, idempotency_key="waited")
        return await world.http.post("/v1/calls?wait=10", headers=headers, content=b"21")

    together = await asyncio.gather(ask(), ask(), ask())
    later = await ask()

    frames = [only_frame(answer.content) for answer in (*together, later)]
    assert {frame.payload for frame in frames} == {b"21"}
    assert len({frame.meta["call"] for frame in frames}) == 1
    assert len(agent.seen) == 1


async def test_a_deploy_in_between_does_not_make_a_second_call(world: World) -> None:
    before = await world.publish(name="moving", mode="deployed")
    first = await spawn(world.http, before, "same")
    after = await world.publish(a_function(timeout_s=77), name="moving", mode="deployed")

    second = await spawn(world.http, after, "same")

    assert second.json()["call"] == first.json()["call"]
    assert before["functions"] != after["functions"]
    assert await inputs_of(world, pool_id(after["functions"]["double"])) == 0


async def test_a_call_whose_maker_died_after_taking_the_key_is_made_by_the_next(world: World) -> None:
    """The first gateway wrote the key and nothing else."""
    app, bucket, call = await world.publish(), world.bus.kv("idem"), new_call_id(SHARDS)
    await spawn(world.http, app, "whole")
    whole = (await bucket.entries())[-1]
    function = whole.key.rpartition(".")[0]
    half = replace(KeyedCall.decode(whole.value), call=call)
    await bucket.create(f"{function}.{sha256(b'half')}", half.encode())

    again = await spawn(world.http, app, "half")

    assert again.json()["call"] == call
    assert await inputs_of(world, pool_id(app["functions"]["double"])) == 2


async def test_a_result_is_enough_when_the_journal_has_forgotten_the_call(world: World, agent: TinyAgent) -> None:
    app = await world.publish()
    await agent.serve(pool_id(app["functions"]["double"]))
    headers = call_headers(app, idempotency_key="old")
    first = only_frame((await world.http.post("/v1/calls?wait=10", headers=headers, content=b"7")).content)
    call = first.meta["call"]
    await world.bus.purge(subjects.journal_stream("local", shard_of(call)), subjects.calls_of("local", "*", call))

    headers = call_headers(app, idempotency_key="old")
    again = only_frame((await world.http.post("/v1/calls?wait=10", headers=headers, content=b"7")).content)

    assert (again.meta["call"], again.payload, len(agent.seen)) == (call, b"7", 1)


async def test_a_refused_call_takes_no_key(world: World) -> None:
    app = await world.publish()
    missing = {"blob": "ab" * 32 + ":5"}

    refused = await spawn(world.http, app, "fixable", b"", **missing)
    corrected = await spawn(world.http, app, "fixable", b"small")

    assert (refused.status_code, corrected.status_code) == (400, 202)


async def test_what_cannot_have_a_key_says_so(world: World) -> None:
    app = await world.publish(a_function(), a_generator())
    generator = call_headers(app, "count", kind="generator", idempotency_key="k")
    a_map = call_headers(app, idempotency_key="k")
    answers = [
        await world.http.post("/v1/calls", headers=generator),
        await world.http.post(f"/v1/calls/{new_call_id(SHARDS)}/inputs", headers=a_map, content=input_frames(b"")),
        await spawn(world.http, app, "k" * 256),
    ]

    assert [(answer.status_code, Header.IDEMPOTENCY_KEY in error_of(answer)["message"]) for answer in answers] == [
        (400, True)
    ] * 3


async def test_a_key_survives_the_bus_server_and_the_gateway(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        app = await world.publish()
        first = await spawn(world.http, app, "durable")
        await world.gateways[0].stop()
        await world.server.kill()
        await world.server.restart()
        _, fresh = await world.start_gateway()

        again = await spawn(fresh, app, "durable")

        assert again.json()["call"] == first.json()["call"]
        assert await inputs_of(world, pool_id(app["functions"]["double"])) == 1
