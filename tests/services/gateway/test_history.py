"""Lists of calls, their details, and the fleet: what the CLI shows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from tests.services.gateway.world import SHARDS, World, a_function, call_headers, input_frames, succeeded
from tests.support.eventually import eventually

from squall.http_api.protocol import Header
from squall.ids import new_call_id
from squall_contracts import subjects
from squall_contracts.calls import AttemptFailed, CallEvent
from squall_contracts.functions import pool_id
from squall_contracts.health import HEALTH, StreamsChecked, streams_key
from squall_contracts.nodes import ContainerClaim, ContainerStats, GpuFact, NodeFact, claim_key
from squall_contracts.scaling import Desired, Verdict

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_calls_of_an_app_are_listed_newest_first_with_their_state(world: World) -> None:
    app = await world.publish(a_function("quick"), a_function("slow"), name="lists")
    agent = world.agent(
        lambda request: replace(
            succeeded(request), outcome="failed", error={"type": "ValueError", "message": "no"}, ended_at=9.0
        )
    )
    await agent.serve(pool_id(app["functions"]["quick"]))
    failed, waiting = call_headers(app, "quick"), call_headers(app, "slow", kind="spawn")
    await world.http.post("/v1/calls?wait=10", headers=failed, content=b"x")
    await world.http.post("/v1/calls", headers=waiting, content=b"x")
    many = new_call_id(SHARDS)
    await world.http.post(
        f"/v1/calls/{many}/inputs", headers=call_headers(app, "slow", kind="map"), content=input_frames(b"", b"")
    )
    await agent.stop()

    async def calls(**query: Any) -> list[dict[str, Any]]:
        return list((await world.http.get("/v1/calls", params={"app": app["app_id"], **query})).json()["calls"])

    rows = {row["call"]: row for row in await calls()}
    assert rows[failed[Header.CALL]] == rows[failed[Header.CALL]] | {
        "state": "failed",
        "function": "quick",
        "kind": "remote",
        "failed": 1,
        "error": "ValueError: no",
        "ended_at": 9.0,
    }
    assert rows[waiting[Header.CALL]]["state"] == "queued"
    assert (rows[many]["inputs"], rows[many]["finished"], rows[many]["kind"]) == (2, 0, "map")
    assert [row["call"] for row in await calls(function="quick")] == [failed[Header.CALL]]
    newest = await calls(limit=1)
    assert newest[0]["call"] == max(rows, key=lambda call: call[3:13])


async def test_a_call_tells_its_failed_attempts_and_its_history(world: World) -> None:
    app = await world.publish()
    headers = call_headers(app, kind="spawn")
    call = headers[Header.CALL]
    await world.http.post("/v1/calls", headers=headers, content=b"x")
    started = CallEvent(call, 0, "started", 5.0, "2-bbbbbb", "n1", "co-1")
    await world.bus.publish(subjects.event("local", "main", call, 0), started.encode())
    failed = AttemptFailed(call, 0, "1-aaaaaa", "user", 1, 0, 4.0, 5.0, "ValueError")
    await world.bus.publish(subjects.attempts("local", "main", call, 0), failed.encode())

    body = (await world.http.get(f"/v1/calls/{call}")).json()

    assert (body["state"], body["inputs"], body["app"]) == ("running", 1, app["app_id"])
    assert [attempt["reason"] for attempt in body["attempts"]] == ["ValueError"]
    assert [event["event"] for event in body["history"]] == ["started"]


@asynccontextmanager
async def single_copies_away(world: World) -> AsyncIterator[None]:
    """No server has events, logs and spans, as when the only one that had them is down."""
    only = [subjects.events_stream("local", shard) for shard in range(SHARDS)]
    only += [subjects.logs_stream("local", shard) for shard in range(SHARDS)] + [subjects.spans_stream("local")]
    for stream in only:
        await world.bus.drop_stream(stream)
    try:
        yield
    finally:
        for stream in only:
            await world.bus.ensure_stream(stream)


async def test_a_call_is_told_without_its_events_when_their_only_server_is_away(world: World) -> None:
    app = await world.publish()
    headers = call_headers(app, kind="spawn")
    call = headers[Header.CALL]
    await world.http.post("/v1/calls", headers=headers, content=b"x")

    async with single_copies_away(world):
        told = (await world.http.get(f"/v1/calls/{call}")).json()
        listed = (await world.http.get("/v1/calls", params={"app": app["app_id"]})).json()
        refused = [await world.http.get(path) for path in (f"/v1/calls/{call}/trace", f"/v1/apps/{app['app_id']}/logs")]

    assert (told["state"], told["history"]) == ("queued", [])
    assert told["history_missing"] == "events cannot be read: no bus server that is up has them"
    assert [row["call"] for row in listed["calls"]] == [call]
    assert [each.json()["error"]["code"] for each in refused] == ["service"] * 2


async def test_why_a_call_waits_is_what_the_scheduler_says(world: World) -> None:
    app = await world.publish()
    pool = pool_id(app["functions"]["double"])
    headers = call_headers(app)
    verdict = Verdict(pool=pool, at=1.0, missing=1, message="no node offers H100: node a has none")
    await world.bus.kv("verdicts").put(pool, verdict.encode())
    await world.bus.kv("desired").put(pool, Desired(pool, 1, "one call", "d1", 1.0).encode())

    async def reason() -> str:
        answer = await world.http.post("/v1/calls?wait=0.01", headers=headers, content=b"x")
        return str(answer.json()["waiting"])

    async def the_verdict() -> bool:
        return await reason() == verdict.message

    await eventually(the_verdict)
    await world.bus.kv("verdicts").delete(pool)

    async def the_place() -> bool:
        return await reason() == "waiting for a place to start a container"

    await eventually(the_place)


async def test_nodes_and_containers_are_listed_with_what_they_do(world: World) -> None:
    app = await world.publish()
    pool = pool_id(app["functions"]["double"])
    fact = NodeFact("n1", "local", 5.0, 8, 1024, cpu_used=2, gpus=(GpuFact("g", "H100", 80_000),), containers=1)
    await world.bus.kv("nodes").put("n1", fact.encode())
    claim = ContainerClaim(
        pool=pool,
        ordinal=0,
        container="co-1",
        node="n1",
        function_id=app["functions"]["double"],
        app_id=app["app_id"],
        workspace="main",
        state="ready",
        created_at=5.0,
        updated_at=5.0,
        how="fork",
    )
    await world.bus.kv("containers").put(claim_key(pool, 0), claim.encode())

    async def busy() -> dict[str, Any]:
        import time

        stats = ContainerStats("n1", time.time(), [["co-1", pool, 3, 4, 0, "ready"]])
        world.bus.send(subjects.stats("local", "n1"), stats.encode())
        answer = await world.http.get("/v1/containers", params={"app": app["app_id"]})
        rows = answer.json()["containers"]
        return dict(rows[0]) if rows and rows[0]["running"] else {}

    row = await eventually(busy)
    [node] = (await world.http.get("/v1/nodes")).json()["nodes"]
    status = (await world.http.get("/v1/status")).json()

    assert row == {
        "container": "co-1",
        "app": app["app_id"],
        "function": "double",
        "node": "n1",
        "state": "ready",
        "running": 3,
        "started_at": 5.0,
        "how": "fork",
        "gpus": [],
    }
    assert (node["node"], node["gpus"], node["cpu_used"]) == ("n1", ["H100"], 2)
    assert (status["nodes"], status["bus_connected"]) == (1, True)
    assert status["clock_skews_s"].keys() == {"gateway", "n1"}
    assert abs(status["clock_skews_s"]["gateway"]) < 60
    assert (status["durability"], status["replicas"], status["store_limit_bytes"]) == ("fsync always", 1, None)
    assert status["store_used_bytes"] > 0
    assert (status["streams_checked"], status["streams_failing"]) == (0, {})


async def test_status_tells_which_streams_failed_their_canary(world: World) -> None:
    checked = StreamsChecked(at=1.0, streams=7, slowest="A", slowest_ms=2.5, failing={"RESULTS_local_00": "no answer"})
    await world.bus.kv(HEALTH).put(streams_key(0), checked.encode())

    status = (await world.http.get("/v1/status")).json()

    assert (status["streams_checked"], status["streams_slowest_ms"]) == (7, 2.5)
    assert status["streams_failing"] == {"RESULTS_local_00": "no answer"}
    await world.bus.kv(HEALTH).delete(streams_key(0))
