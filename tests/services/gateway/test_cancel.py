"""Cancelling calls, and stopping apps: one record each, nothing starts afterwards."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from tests.services.gateway.world import (
    SHARDS,
    TinyAgent,
    World,
    a_function,
    call_headers,
    error_of,
    input_frames,
    only_frame,
    succeeded,
)
from tests.support.eventually import eventually

from squall.http_api.protocol import Header
from squall.ids import new_call_id, shard_of
from squall_contracts import subjects
from squall_contracts.calls import CallRequested, CallResult
from squall_contracts.functions import pool_id
from squall_gateway.auth import create_token

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def queued(world: World, pool: str) -> int:
    total = 0
    for shard in range(SHARDS):
        wanted = subjects.calls_of_pool("local", shard, pool)
        total += len((await world.bus.stream_info(subjects.work_stream("local", shard), wanted)).subjects)
    return total


async def test_a_queued_call_that_is_cancelled_ends_so_and_never_starts(world: World, agent: TinyAgent) -> None:
    app = await world.publish()
    pool, headers = pool_id(app["functions"]["double"]), call_headers(app, kind="spawn")
    call = headers[Header.CALL]
    await world.http.post("/v1/calls", headers=headers, content=b"x")

    first = await world.http.post(f"/v1/calls/{call}/cancel", json={"terminate_containers": False})
    second = await world.http.post(f"/v1/calls/{call}/cancel")
    result = await world.http.get(f"/v1/calls/{call}/result?wait=5")

    assert (first.json(), second.json()) == ({"cancelled": 1}, {"cancelled": 0})
    meta = only_frame(result.content).meta
    assert (meta["outcome"], meta["error"]["kind"]) == ("cancelled", "cancelled")
    assert await queued(world, pool) == 0
    await agent.serve(pool)
    again = await world.http.post("/v1/calls?wait=5", headers=headers, content=b"x")
    assert only_frame(again.content).meta["outcome"] == "cancelled"
    assert agent.seen == []


async def test_a_cancel_right_after_the_acknowledgement_still_empties_the_queue(world: World) -> None:
    app = await world.publish()
    pool = pool_id(app["functions"]["double"])
    for _ in range(10):
        headers = call_headers(app, kind="spawn")
        await world.http.post("/v1/calls", headers=headers, content=b"x")
        await world.http.post(f"/v1/calls/{headers[Header.CALL]}/cancel")

    assert await queued(world, pool) == 0


@pytest.mark.slow
async def test_a_cancel_is_recorded_and_acknowledged_while_a_queue_is_lost(world: World) -> None:
    app = await world.publish()
    headers = call_headers(app, kind="spawn")
    call = headers[Header.CALL]
    await world.http.post("/v1/calls", headers=headers, content=b"x")
    await world.bus.request(f"$JS.API.STREAM.DELETE.{subjects.work_stream('local', shard_of(call))}", b"")
    try:
        answer = await world.http.post(f"/v1/calls/{call}/cancel")
        stopping = await world.http.post(f"/v1/apps/{app['app_id']}/stop")
    finally:
        await world.bus.ensure_topology()
    result = await world.http.get(f"/v1/calls/{call}/result?wait=5")

    assert (answer.status_code, answer.json()) == (200, {"cancelled": 1})
    assert only_frame(result.content).meta["outcome"] == "cancelled"
    assert stopping.status_code == 503, "calls in the lost queue were not cancelled, and nobody was told"


async def test_who_waits_for_a_cancelled_call_is_told_at_once_and_its_agent_too(world: World) -> None:
    app = await world.publish()
    agent, headers = world.agent(lambda request: None), call_headers(app)
    await agent.serve(pool_id(app["functions"]["double"]))
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(4):
        waiting = tasks.create_task(world.http.post("/v1/calls?wait=20", headers=headers, content=b"x"))
        await eventually(lambda: agent.seen)
        await world.http.post(f"/v1/calls/{headers[Header.CALL]}/cancel", json={"terminate_containers": True})

    assert only_frame(waiting.result().content).meta["outcome"] == "cancelled"
    await eventually(lambda: agent.cancels)
    assert (agent.cancels[0].call, agent.cancels[0].terminate_containers) == (headers[Header.CALL], True)
    await agent.stop()


async def test_a_call_that_has_ended_stays_what_it_is(world: World, agent: TinyAgent) -> None:
    app, headers = await world.publish(), None
    headers = call_headers(app)
    await agent.serve(pool_id(app["functions"]["double"]))
    await world.http.post("/v1/calls?wait=10", headers=headers, content=b"x")

    answer = await world.http.post(f"/v1/calls/{headers[Header.CALL]}/cancel")
    result = await world.http.get(f"/v1/calls/{headers[Header.CALL]}/result?wait=5")

    assert answer.json() == {"cancelled": 0}
    assert only_frame(result.content).meta["outcome"] == "succeeded"


async def test_a_map_is_cancelled_in_all_inputs_that_have_not_ended(world: World) -> None:
    app, call = await world.publish(), new_call_id(SHARDS)
    pool = pool_id(app["functions"]["double"])
    agent = world.agent(lambda request: succeeded(request) if request.index < 20 else None)
    await agent.serve(pool)
    chunk = input_frames(*[b""] * 300)
    await world.http.post(f"/v1/calls/{call}/inputs", headers=call_headers(app, kind="map"), content=chunk)
    results = subjects.results_stream("local", shard_of(call))
    wanted = subjects.results_of("local", "main", call)

    async def twenty() -> bool:
        return len((await world.bus.stream_info(results, wanted)).subjects) == 20

    await eventually(twenty)
    answer = await world.http.post(f"/v1/calls/{call}/cancel")
    await agent.stop()

    assert answer.json() == {"cancelled": 280}
    assert len((await world.bus.stream_info(results, wanted)).subjects) == 300
    assert await queued(world, pool) == 0
    summary = (await world.http.get(f"/v1/calls/{call}")).json()
    assert (summary["inputs"], summary["finished"], summary["failed"]) == (300, 300, 280)


async def test_unknown_calls_and_those_of_others_cannot_be_cancelled(world: World) -> None:
    answer = await world.http.post(f"/v1/calls/{new_call_id(SHARDS)}/cancel")

    assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")


async def test_stopping_an_app_cancels_everything_that_it_has(world: World) -> None:
    app = await world.publish()
    pool = pool_id(app["functions"]["double"])
    agent, headers = world.agent(lambda request: None), call_headers(app)
    await agent.serve(pool)
    spawned = [call_headers(app, kind="spawn") for _ in range(20)]
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(10):
        waiting = tasks.create_task(world.http.post("/v1/calls?wait=20", headers=headers, content=b"x"))
        for each in spawned:
            await world.http.post("/v1/calls", headers=each, content=b"x")
        await eventually(lambda: len(agent.seen) == 21)
        stopped = await world.http.post(f"/v1/apps/{app['app_id']}/stop", json={"reason": "test"})
    await agent.stop()

    assert stopped.json() == {"state": "stopped"}
    assert only_frame(waiting.result().content).meta["outcome"] == "cancelled"
    for each in spawned:
        result = await world.http.get(f"/v1/calls/{each[Header.CALL]}/result")
        assert only_frame(result.content).meta["outcome"] == "cancelled"
    assert await queued(world, pool) == 0
    assert {cancel.call for cancel in agent.cancels} == {request.call for request in agent.seen}


async def test_stopping_twice_is_stopping_once(world: World) -> None:
    app = await world.publish()
    answers = [await world.http.post(f"/v1/apps/{app['app_id']}/stop") for _ in range(2)]

    assert [answer.json() for answer in answers] == [{"state": "stopped"}] * 2


# ---------------------------------------------------------------- in bulk


async def cancel_many(world: World, **wanted: Any) -> dict[str, Any]:
    """The last line of a bulk cancel."""
    answer = await world.http.post("/v1/cancels", json={"request": new_call_id(SHARDS), **wanted})
    lines = [json.loads(line) for line in answer.content.splitlines() if line]
    if answer.status_code != 200:
        return dict(lines[0])
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    return dict(lines[-1])


async def outcomes(world: World, call: str) -> Counter[str]:
    stream = subjects.results_stream("local", shard_of(call))
    found = [
        CallResult.decode(s.data) async for s in world.bus.read(stream, subjects.results_of("local", "main", call))
    ]
    return Counter(result.outcome for result in found)


async def test_everything_of_an_app_is_cancelled_and_counted_exactly(world: World) -> None:
    app, other = await world.publish(), await world.publish(name="bystander")
    pool = pool_id(app["functions"]["double"])
    big, headers = new_call_id(SHARDS), call_headers(app, kind="spawn")
    for first in (0, 1000):
        body = input_frames(*[b"x"] * 1000, first=first)
        await world.http.post(f"/v1/calls/{big}/inputs", headers=headers, content=body)
    singles = [call_headers(app, kind="spawn") for _ in range(7)]
    for each in singles:
        await world.http.post("/v1/calls", headers=each, content=b"x")
    survivor = call_headers(other, kind="spawn")
    await world.http.post("/v1/calls", headers=survivor, content=b"x")
    ended = await accepted(world, singles[0][Header.CALL])
    await TinyAgent(world.bus, succeeded).finish(ended, succeeded(ended))

    last = await cancel_many(world, app=app["app_id"])
    again = await cancel_many(world, app=app["app_id"])

    assert (last["cancelled"], last["ended"]) == (2006, 1)
    assert (again["cancelled"], again["ended"]) == (0, 0)
    assert await outcomes(world, big) == {"cancelled": 2000}
    assert await outcomes(world, singles[0][Header.CALL]) == {"succeeded": 1}
    assert await queued(world, pool) == 0
    assert await queued(world, pool_id(other["functions"]["double"])) == 1


async def test_a_bulk_cancel_stops_what_runs_and_leaves_what_comes_after(world: World) -> None:
    app = await world.publish()
    pool = pool_id(app["functions"]["double"])
    holding = world.agent(lambda request: None)
    await holding.serve(pool)
    running = call_headers(app, kind="spawn")
    await world.http.post("/v1/calls", headers=running, content=b"x")
    await eventually(lambda: holding.seen)

    last = await cancel_many(world, app=app["app_id"], terminate_containers=True)
    await eventually(lambda: [(each.call, each.terminate_containers) for each in holding.cancels])
    later = call_headers(app, kind="spawn")
    await world.http.post("/v1/calls", headers=later, content=b"x")

    assert last["cancelled"] == 1
    assert {(each.call, each.terminate_containers) for each in holding.cancels} == {(running[Header.CALL], True)}
    await eventually(lambda: later[Header.CALL] in {request.call for request in holding.seen})
    await holding.stop()


async def test_the_inputs_of_a_call_are_cancelled_in_bulk_with_what_had_ended_told(world: World) -> None:
    app, call = await world.publish(), new_call_id(SHARDS)
    headers = call_headers(app, kind="spawn")
    await world.http.post(f"/v1/calls/{call}/inputs", headers=headers, content=input_frames(*[b"x"] * 1000))
    for index in (3, 5):
        request = await accepted(world, call, index)
        await TinyAgent(world.bus, succeeded).finish(request, succeeded(request))

    last, again = await cancel_many(world, call=call), await cancel_many(world, call=call)

    assert (last["cancelled"], last["ended"]) == (998, 2)
    assert (again["cancelled"], again["ended"]) == (0, 1000)


async def test_the_same_request_again_tells_the_same_count(world: World) -> None:
    app, headers = await world.publish(), None
    for _ in range(3):
        headers = call_headers(app, kind="spawn")
        await world.http.post("/v1/calls", headers=headers, content=b"x")
    name = new_call_id(SHARDS)

    first = await cancel_many(world, app=app["app_id"], request=name)
    repeated = await cancel_many(world, app=app["app_id"], request=name)

    assert first == repeated
    assert first["cancelled"] == 3


async def test_only_one_function_of_an_app_is_cancelled(world: World) -> None:
    app = await world.publish(a_function("one"), a_function("two"))
    for function in ("one", "two", "two"):
        await world.http.post("/v1/calls", headers=call_headers(app, function, kind="spawn"), content=b"x")

    last = await cancel_many(world, app=app["app_id"], function="two")

    assert last["cancelled"] == 2
    assert await queued(world, pool_id(app["functions"]["one"])) == 1


async def test_a_bulk_cancel_that_names_nothing_or_too_much_is_refused(world: World) -> None:
    app = await world.publish()
    token = await create_token(world.bus, "other", "workspace", "test", now=1.0)
    stranger = await world.client(str(world.http.base_url), token)
    foreign = await stranger.post("/v1/cancels", json={"request": "x", "app": app["app_id"]})

    codes = [
        (await cancel_many(world))["error"]["code"],
        (await cancel_many(world, app=app["app_id"], call=new_call_id(SHARDS)))["error"]["code"],
        (await cancel_many(world, app=app["app_id"], request=""))["error"]["code"],
        (await cancel_many(world, call=new_call_id(SHARDS)))["error"]["code"],
        (await cancel_many(world, app=app["app_id"], function="three"))["error"]["code"],
        error_of(foreign)["code"],
    ]

    assert codes == ["invalid", "invalid", "invalid", "not_found", "invalid", "not_found"]


async def accepted(world: World, call: str, index: int = 0) -> CallRequested:
    stream = subjects.journal_stream("local", shard_of(call))
    [stored] = (await world.bus.get_many(stream, [subjects.call("local", "*", call, index)])).values()
    return CallRequested.decode(stored.data)


async def test_what_agents_record_because_of_a_bulk_cancel_belongs_to_its_count(world: World) -> None:
    """Told of a call, an agent ends every input of it that it gets, before the cancel has come to that one."""
    app, call = await world.publish(), new_call_id(SHARDS)
    pool, headers = pool_id(app["functions"]["double"]), call_headers(app, kind="spawn")
    for first in range(0, 4000, 1000):
        body = input_frames(*[b"x"] * 1000, first=first)
        await world.http.post(f"/v1/calls/{call}/inputs", headers=headers, content=body)
    agent = TinyAgent(world.bus, lambda request: None)
    await agent.serve(pool)
    last = [await accepted(world, call, index) for index in range(3900, 4000)]

    async def end_the_last() -> None:
        await eventually(lambda: agent.cancels)
        for request in last:
            await agent.finish(request, replace(succeeded(request), outcome="cancelled", attempt=""))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(end_the_last())
        told = await cancel_many(world, app=app["app_id"])
    await agent.stop()

    assert (told["cancelled"], told["ended"]) == (4000, 0)
    assert await outcomes(world, call) == {"cancelled": 4000}
