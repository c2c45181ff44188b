"""The call path: accept, wait, answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.services.gateway.world import (
    SHARDS,
    TinyAgent,
    World,
    a_function,
    a_world,
    call_headers,
    error_of,
    only_frame,
    succeeded,
)
from tests.support.eventually import eventually

from squall.http_api.protocol import FrameKind, Header, encode_parameters
from squall.ids import new_call_id, shard_of
from squall.spec import MethodSpec, ParameterSpec
from squall_contracts import subjects
from squall_contracts.calls import DEADLINE_HEADER, CallRequested
from squall_contracts.functions import PoolRecord, pool_id, pool_key

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_call_is_answered_with_the_result_that_the_agent_recorded(world: World, agent: TinyAgent) -> None:
    app = await world.publish()
    await agent.serve(pool_id(app["functions"]["double"]))

    answer = await world.http.post("/v1/calls?wait=10", headers=call_headers(app), content=b"21")

    assert answer.status_code == 200
    frame = only_frame(answer.content)
    assert frame.kind == FrameKind.RESULT
    assert frame.payload == b"21"
    assert frame.meta["outcome"] == "succeeded"
    assert frame.meta["node"] == "n1"


async def test_the_agent_sees_everything_that_the_caller_said(world: World, agent: TinyAgent) -> None:
    app = await world.publish(a_function(queue_limit_s=100))
    parent, trace = new_call_id(SHARDS), "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    headers = call_headers(app, parent=parent, encoding="json", traceparent=trace, sent="1000:2000")
    await agent.serve(pool_id(app["functions"]["double"]))

    await world.http.post("/v1/calls?wait=10", headers=headers, content=b"[1]")

    [request] = agent.seen
    assert (request.call, request.index, request.kind) == (headers[Header.CALL], 0, "remote")
    assert (request.function, request.app) == (app["functions"]["double"], app["app_id"])
    assert (request.encoding, request.payload, request.parent) == ("json", b"[1]", parent)
    assert (request.workspace, request.traceparent) == ("main", trace)
    assert request.deadline == pytest.approx(request.accepted_at + 100)
    assert [row[0] for row in request.spans] == ["args.encode"]


async def test_the_deadline_is_a_header_of_the_journal_and_the_time_to_live_outlasts_every_attempt(
    world: World,
) -> None:
    app = await world.publish(a_function(queue_limit_s=100, timeout_s=10, startup_timeout_s=20))
    headers = call_headers(app, kind="spawn")

    await world.http.post("/v1/calls", headers=headers, content=b"x")

    call = headers[Header.CALL]
    subject = subjects.call("local", pool_id(app["functions"]["double"]), call, 0)
    stored = await world.bus.get_last(subjects.journal_stream("local", shard_of(call)), subject)
    assert stored is not None
    assert float(stored.headers[DEADLINE_HEADER]) == pytest.approx(CallRequested.decode(stored.data).deadline, abs=0.01)
    assert stored.headers["Nats-TTL"] == f"{100 + 30 + 3600}s"


async def test_the_pool_is_known_and_has_its_consumer_before_the_first_input_is_stored(world: World) -> None:
    app = await world.publish()
    pool, headers = pool_id(app["functions"]["double"]), call_headers(app, kind="spawn")

    await world.http.post("/v1/calls", headers=headers, content=b"x")

    entry = await world.bus.kv("specs").get(pool_key(pool))
    assert entry is not None
    assert PoolRecord.decode(entry.value).app_id == app["app_id"]
    work = subjects.work_stream("local", shard_of(headers[Header.CALL]))
    await eventually(lambda: _pending(world, work, pool))


async def _pending(world: World, stream: str, pool: str) -> int:
    info = await world.bus.consumer_info(stream, pool)
    return info.pending if info else 0


async def test_a_spawned_call_is_acknowledged_at_once_and_its_result_is_read_later(
    world: World, agent: TinyAgent
) -> None:
    app = await world.publish()
    headers = call_headers(app, kind="spawn")
    accepted = await world.http.post("/v1/calls?wait=0", headers=headers, content=b"7")
    assert accepted.status_code == 202
    assert accepted.json()["call"] == headers[Header.CALL]

    early = await world.http.get(f"/v1/calls/{headers[Header.CALL]}/result?wait=0")
    await agent.serve(pool_id(app["functions"]["double"]))
    late = await world.http.get(f"/v1/calls/{headers[Header.CALL]}/result?wait=10")

    assert early.status_code == 202
    assert "autoscaler" in early.json()["waiting"]
    assert only_frame(late.content).payload == b"7"


async def test_the_same_call_sent_twice_is_one_call_with_one_result(world: World, agent: TinyAgent) -> None:
    app = await world.publish()
    headers = call_headers(app)
    async with asyncio.TaskGroup() as tasks:
        both = [
            tasks.create_task(world.http.post("/v1/calls?wait=10", headers=headers, content=b"5")) for _ in range(2)
        ]
        await agent.serve(pool_id(app["functions"]["double"]))
    again = await world.http.post("/v1/calls?wait=10", headers=headers, content=b"5")

    assert [only_frame(task.result().content).payload for task in both] == [b"5", b"5"]
    assert only_frame(again.content).payload == b"5"
    assert len(agent.seen) == 1


async def test_a_call_that_is_sent_again_after_a_deploy_is_no_second_call(world: World) -> None:
    old = await world.publish(name="twice", mode="deployed")
    headers = call_headers(old)
    made_before = "fc-0100000000" + headers[Header.CALL][13:]  # its time is the first ten
    # As a gateway stored it a minute ago: the journal does not know its message id any more.
    await world.http.post("/v1/calls?wait=0", headers=headers, content=b"5")
    region, shard = world.bus.topology.region, shard_of(made_before)
    pool = pool_id(old["functions"]["double"])
    stored = await world.bus.get_last(
        subjects.journal_stream(region, shard), subjects.call(region, pool, headers[Header.CALL], 0)
    )
    assert stored is not None
    first = replace(CallRequested.decode(stored.data), call=made_before)
    await world.bus.publish(subjects.call(region, pool, made_before, 0), first.encode())

    new = await world.publish(a_function(timeout_s=17), name="twice", mode="deployed")
    assert new["functions"] != old["functions"]
    again = await world.http.post("/v1/calls?wait=0", headers={**headers, Header.CALL: made_before}, content=b"5")

    assert again.status_code == 202
    journal = await world.bus.stream_info(
        subjects.journal_stream(region, shard), subjects.calls_of(region, "*", made_before)
    )
    assert list(journal.subjects) == [subjects.call(region, pool, made_before, 0)]


async def test_a_wait_that_is_over_says_why_the_call_waits_and_can_be_resumed(world: World, agent: TinyAgent) -> None:
    app = await world.publish()
    headers = call_headers(app)

    answer = await world.http.post("/v1/calls?wait=0.05", headers=headers, content=b"5")
    await agent.serve(pool_id(app["functions"]["double"]))
    resumed = await world.http.get(f"/v1/calls/{headers[Header.CALL]}/result?wait=10")

    assert answer.status_code == 202
    assert answer.json() == {
        "call": headers[Header.CALL],
        "waiting": "no container yet; waiting for the autoscaler",
    }
    assert only_frame(resumed.content).payload == b"5"


async def test_another_gateway_serves_the_result_of_a_call_that_it_did_not_take(world: World, agent: TinyAgent) -> None:
    app = await world.publish()
    _, other = await world.start_gateway()
    headers = call_headers(app, kind="spawn")
    await world.http.post("/v1/calls", headers=headers, content=b"5")
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(other.get(f"/v1/calls/{headers[Header.CALL]}/result?wait=10"))
        await agent.serve(pool_id(app["functions"]["double"]))

    assert only_frame(waiting.result().content).payload == b"5"


@pytest.mark.slow
async def test_a_reply_that_got_lost_is_made_up_for_when_the_bus_comes_back(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        app = await world.publish()
        headers, pool = call_headers(app), pool_id(app["functions"]["double"])
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(world.http.post("/v1/calls?wait=20", headers=headers, content=b"5"))
            await record_without_reply(world, pool)
            await world.server.restart()

        assert only_frame(waiting.result().content).payload == b"5"


@pytest.mark.slow
async def test_a_reply_that_got_lost_is_made_up_for_after_five_seconds(world: World) -> None:
    app = await world.publish()
    headers, pool = call_headers(app), pool_id(app["functions"]["double"])
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(world.http.post("/v1/calls?wait=20", headers=headers, content=b"5"))
        await record_without_reply(world, pool)

    assert only_frame(waiting.result().content).payload == b"5"


async def record_without_reply(world: World, pool: str) -> None:
    agent = world.agent(lambda request: None)
    await agent.serve(pool)
    await eventually(lambda: agent.seen)
    silent = replace(agent.seen[0], reply_to=None)
    await agent.finish(silent, succeeded(silent))
    await agent.stop()


async def test_a_failed_call_brings_its_error_and_its_pickled_exception(world: World) -> None:
    app = await world.publish()
    error = {"kind": "user", "type": "ValueError", "message": "no"}
    agent = world.agent(lambda request: replace(succeeded(request, b"pickled"), outcome="failed", error=error))
    await agent.serve(pool_id(app["functions"]["double"]))

    answer = await world.http.post("/v1/calls?wait=10", headers=call_headers(app), content=b"5")
    await agent.stop()

    frame = only_frame(answer.content)
    assert answer.status_code == 200
    assert (frame.meta["outcome"], frame.meta["error"], frame.payload) == ("failed", error, b"pickled")


async def test_a_call_that_never_was_is_not_found_and_one_that_is_too_old_is_expired(world: World) -> None:
    unknown = await world.http.get(f"/v1/calls/{new_call_id(SHARDS)}/result?wait=1")
    old = await world.http.get("/v1/calls/fc-0000000000aaaaaaaaaaaaaa01/result?wait=1")
    malformed = await world.http.get("/v1/calls/nonsense/result")

    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "not_found")
    assert (old.status_code, error_of(old)["code"]) == (410, "output_expired")
    assert (malformed.status_code, error_of(malformed)["code"]) == (400, "invalid")


async def test_waits_are_forgotten_when_their_client_hangs_up(world: World) -> None:
    app = await world.publish()
    with pytest.raises(httpx.ReadTimeout):
        await world.http.post("/v1/calls?wait=30", headers=call_headers(app), content=b"5", timeout=0.5)

    async def open_waits() -> bool:
        text = (await world.http.get("/metrics")).text
        return "squall_gateway_waits 0.0" in text

    await eventually(open_waits)


async def test_class_parameters_lead_to_a_pool_of_their_own(world: World, agent: TinyAgent) -> None:
    spec = a_function("Model", is_class=True, methods=(MethodSpec("run"),), parameters=(ParameterSpec("size", "str"),))
    app = await world.publish(spec)
    encoded = encode_parameters({"size": "xl"})
    await agent.serve(pool_id(app["functions"]["Model"], encoded))

    answer = await world.http.post(
        "/v1/calls?wait=10",
        headers=call_headers(app, "Model", method="run", parameters=encoded),
        content=b"5",
    )
    unknown = await world.http.post(
        "/v1/calls",
        headers=call_headers(app, "Model", method="run", parameters=encode_parameters({"colour": "red"})),
    )

    assert only_frame(answer.content).payload == b"5"
    assert agent.seen[0].method == "run"
    assert (unknown.status_code, "colour" in error_of(unknown)["message"]) == (400, True)
