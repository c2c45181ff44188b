"""Apps: publish, deploy atomically, keep alive, look."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.services.gateway.world import SHARDS, World, a_function, a_world, call_headers, error_of
from tests.support.clock import FakeClock
from tests.support.eventually import eventually

from squall.http_api.protocol import Header
from squall.ids import new_call_id, shard_of
from squall.spec import CodeRef, ScalingPolicy, to_wire
from squall_contracts import subjects
from squall_contracts.calls import CallRequested
from squall_contracts.functions import AppRecord, FunctionRecord, PoolRecord, pool_id, pool_key
from squall_gateway.apps import Apps
from squall_gateway.auth import create_token
from squall_gateway.blob_places import BlobPlaces
from squall_gateway.blobs import Blobs
from squall_gateway.cancels import Cancels
from squall_gateway.directory import Directory
from squall_gateway.image_records import ImageRecords
from squall_gateway.image_sources import ImageSources
from squall_gateway.objects import Objects
from squall_gateway.policy.webhook_targets import TargetRules
from squall_gateway.pools import Pools
from squall_gateway.results import Results
from squall_gateway.secrets import Secrets
from squall_gateway.stopping import Stopping
from squall_gateway.web.addresses import Addresses
from squall_gateway.web.name_claims import NameClaims
from squall_gateway.webhooks.signing import Signing
from squall_gateway.webhooks.users import WebhookUsers
from squall_service.sealing import Sealer

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def deploy(world: World, name: str, *specs: Any, **more: Any) -> dict[str, Any]:
    return await world.publish(*specs, name=name, mode="deployed", **more)


async def test_a_published_function_is_stored_in_full_under_the_id_that_was_answered(world: World) -> None:
    spec = a_function(timeout_s=17, env={"A": "b"})
    app = await world.publish(spec, name="stored")

    entry = await world.bus.kv("specs").get(app["functions"]["double"])

    assert entry is not None
    record = FunctionRecord.decode(entry.value)
    assert record.spec == spec
    assert (record.app_id, record.app_name, record.workspace, record.ephemeral) == (
        app["app_id"],
        "stored",
        "main",
        True,
    )


async def test_functions_are_added_to_a_running_app(world: World) -> None:
    app = await world.publish(a_function("one"))
    more = await world.publish(a_function("two"), app_id=app["app_id"])
    same = await world.publish(a_function("two"), app_id=app["app_id"])

    assert more["app_id"] == app["app_id"]
    assert set(more["functions"]) == {"one", "two"}
    assert more["functions"]["one"] == app["functions"]["one"]
    assert same["unchanged"] is True


async def test_a_deploy_that_changes_nothing_makes_no_version(world: World) -> None:
    first = await deploy(world, "steady")
    second = await deploy(world, "steady")
    third = await deploy(world, "steady", a_function(timeout_s=5))

    assert (first["version"], first["unchanged"]) == (1, False)
    assert (second["version"], second["unchanged"], second["functions"]) == (1, True, first["functions"])
    assert (third["version"], third["unchanged"], third["app_id"]) == (2, False, first["app_id"])
    assert third["functions"] != first["functions"]


async def test_every_function_gets_a_new_version_when_one_changes(world: World) -> None:
    first = await deploy(world, "pair", a_function("one"), a_function("two"))
    second = await deploy(world, "pair", a_function("one"), a_function("two", timeout_s=5))

    assert first["functions"]["one"] != second["functions"]["one"]


async def test_a_class_needs_no_methods_and_a_function_needs_one(world: World) -> None:
    found = await deploy(world, "bare", a_function("Warm", is_class=True, methods=()))
    assert found["version"] == 1
    with pytest.raises(AssertionError, match="'nothing' has no methods"):
        await deploy(world, "bare", a_function("nothing", methods=()))


async def test_a_deployed_function_is_found_by_name_and_by_version(world: World) -> None:
    first = await deploy(world, "named", a_function(is_class=True))
    second = await deploy(world, "named", a_function(timeout_s=5))

    async def look(**query: Any) -> dict[str, Any]:
        answer = await world.http.get("/v1/functions", params={"app": "named", "name": "double", **query})
        return dict(answer.json())

    assert (await look())["function_id"] == second["functions"]["double"]
    old = await look(version=1)
    assert (old["function_id"], old["version"], old["is_class"]) == (first["functions"]["double"], 1, True)
    assert (await look(app=first["app_id"]))["app_name"] == "named"
    assert (await look(version=9))["error"]["code"] == "not_found"
    assert "triple" in (await look(name="triple"))["error"]["message"]
    assert "nowhere" in (await look(app="nowhere"))["error"]["message"]
    assert "test" in (await look(environment="test"))["error"]["message"]


async def test_deploys_at_the_same_time_give_one_version_each(world: World) -> None:
    await deploy(world, "contested")
    _, other = await world.start_gateway()
    bodies = [
        {"name": "contested", "mode": "deployed", "functions": [to_wire(a_function(timeout_s=n))]} for n in range(2, 8)
    ]
    clients = [world.http, other] * 3
    answers = await asyncio.gather(
        *(client.post("/v1/apps", json=body) for client, body in zip(clients, bodies, strict=True))
    )

    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.json()["version"] for answer in answers) == [2, 3, 4, 5, 6, 7]


async def test_a_stopped_app_is_deployed_again_under_its_name(world: World) -> None:
    first = await deploy(world, "phoenix")
    await world.http.post(f"/v1/apps/{first['app_id']}/stop")
    gone = await world.http.get("/v1/functions", params={"app": "phoenix", "name": "double"})
    again = await deploy(world, "phoenix")

    assert (gone.status_code, "stopped" in error_of(gone)["message"]) == (404, True)
    assert (again["app_id"], again["version"]) == (first["app_id"], 2)
    accepted = await world.http.post("/v1/calls", headers=call_headers(again, kind="spawn"))
    assert accepted.status_code == 202


async def test_a_pool_that_is_wanted_without_calls_is_known_at_publish(world: World) -> None:
    app = await deploy(world, "warm", a_function(scaling=ScalingPolicy(min_containers=2)), a_function("cold"))

    warm = await world.bus.kv("specs").get(pool_key(pool_id(app["functions"]["double"])))
    cold = await world.bus.kv("specs").get(pool_key(pool_id(app["functions"]["cold"])))

    assert warm is not None
    assert PoolRecord.decode(warm.value).function_id == app["functions"]["double"]
    assert cold is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"functions": [to_wire(a_function(scaling=ScalingPolicy(min_containers=3, max_containers=2)))]},
            "max_containers",
        ),
        ({"functions": [to_wire(a_function()), to_wire(a_function())]}, "not all different"),
        ({"functions": [to_wire(a_function("a b"))]}, "a b"),
        ({"functions": [{"name": "x"}]}, "code"),
        ({"name": "ap-pretender"}, "ap-pretender"),
        ({"environment": "no spaces"}, "no spaces"),
        ({"mode": "sometimes"}, "sometimes"),
        ({"functions": [to_wire(replace(a_function(), methods=()))]}, "no methods"),
        ({"functions": [to_wire(replace(a_function(), code=CodeRef("0" * 64, "m", "q")))]}, "code bundle"),
    ],
)
async def test_a_bad_declaration_is_refused_by_name(world: World, change: dict[str, Any], words: str) -> None:
    body = {"name": "bad", "mode": "ephemeral", "functions": [to_wire(a_function())], **change}

    answer = await world.http.post("/v1/apps", json=body)

    assert answer.status_code == 400, answer.text
    assert words in error_of(answer)["message"]


async def test_a_body_that_is_not_json_is_refused_in_the_same_form(world: World) -> None:
    answer = await world.http.post("/v1/apps", content=b"{", headers={"content-type": "application/json"})

    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid")


async def test_an_ephemeral_app_stops_when_its_client_is_silent_and_lives_while_it_is_not(tmp_path: Path) -> None:
    clock = FakeClock(1_000_000_000.0)
    async with a_world(tmp_path, clock=clock) as world:
        app = await world.publish(mode="ephemeral")
        heartbeat = f"/v1/apps/{app['app_id']}/heartbeat"
        for _ in range(5):
            await clock.advance(20)
            assert (await world.http.post(heartbeat)).json() == {"state": "ephemeral"}

        async def stopped() -> bool:
            await clock.advance(2)
            return await state_of(world, app["app_id"]) == "stopped"

        await clock.advance(30)
        await eventually(stopped)
        assert (await world.http.post(heartbeat)).json() == {"state": "stopped"}
        entry = await world.bus.kv("apps").get(app["app_id"])
        assert entry is not None
        assert AppRecord.decode(entry.value).stop_reason == "its client is gone"


async def state_of(world: World, app_id: str) -> str:
    return str((await world.http.get(f"/v1/apps/{app_id}/status")).json()["state"])


async def test_apps_are_listed_with_what_they_have(world: World) -> None:
    await world.http.post("/v1/environments", json={"name": "staging"})
    await deploy(world, "listed", a_function("one"), a_function("two"), environment="staging")

    apps = (await world.http.get("/v1/apps", params={"environment": "staging"})).json()["apps"]

    [row] = apps
    assert (row["name"], row["state"], row["version"], row["functions"]) == ("listed", "deployed", 1, ["one", "two"])


async def test_the_status_of_an_app_tells_the_backlog_of_its_pools(world: World) -> None:
    app = await world.publish()
    for _ in range(3):
        await world.http.post("/v1/calls", headers=call_headers(app, kind="spawn"))

    async def backlog() -> dict[str, Any]:
        [pool] = (await world.http.get(f"/v1/apps/{app['app_id']}/status")).json()["pools"]
        return dict(pool) if pool["backlog"] == 3 else {}

    pool = await eventually(backlog)
    assert (pool["function"], pool["running"], pool["ready"]) == ("double", 0, 0)
    assert "autoscaler" in pool["waiting"]


async def test_apps_of_one_workspace_are_unknown_in_another(world: World) -> None:
    app = await world.publish()
    token = await create_token(world.bus, "other", "workspace", "stranger", now=0)
    stranger = await world.client(str(world.http.base_url), token)

    for answer in (
        await stranger.get(f"/v1/apps/{app['app_id']}/status"),
        await stranger.post(f"/v1/apps/{app['app_id']}/stop"),
        await stranger.post(f"/v1/apps/{app['app_id']}/heartbeat"),
        await stranger.get(f"/v1/apps/{app['app_id']}/logs"),
        await stranger.post("/v1/calls", headers=call_headers(app)),
        await stranger.get("/v1/functions", params={"app": app["app_id"], "name": "double"}),
    ):
        assert answer.status_code == 404, answer.request.url
    assert (await stranger.get("/v1/apps")).json() == {"apps": []}


async def test_clearing_up_after_a_stop_spares_an_app_that_was_deployed_again(tmp_path: Path) -> None:
    clock = FakeClock(1_000_000_000.0)
    async with a_world(tmp_path, clock=clock) as world:
        app = await deploy(world, "phoenix")
        await world.http.post(f"/v1/apps/{app['app_id']}/stop")
        again = await deploy(world, "phoenix")
        headers = call_headers(again, kind="spawn")
        await world.http.post("/v1/calls", headers=headers)
        for _ in range(5):
            await clock.advance(2)

        result = await world.http.get(f"/v1/calls/{headers[Header.CALL]}/result?wait=0")
        assert result.status_code == 202


async def test_a_call_that_slipped_in_beside_the_stop_is_cancelled_a_moment_later(tmp_path: Path) -> None:
    clock = FakeClock(1_000_000_000.0)
    async with a_world(tmp_path, clock=clock) as world:
        app = await world.publish()
        first = call_headers(app, kind="spawn")
        await world.http.post("/v1/calls", headers=first)
        async with asyncio.TaskGroup() as tasks:
            stopping = tasks.create_task(world.http.post(f"/v1/apps/{app['app_id']}/stop"))

            async def stopped() -> bool:
                await clock.advance(0.02)
                return stopping.done()

            await eventually(stopped, every_s=0.02)
        late = await slipped_in(world, first[Header.CALL], pool_id(app["functions"]["double"]))

        async def cancelled() -> bool:
            await clock.advance(2)
            return (await world.http.get(f"/v1/calls/{late}/result?wait=0")).status_code == 200

        await eventually(cancelled)


async def slipped_in(world: World, call: str, pool: str) -> str:
    """What a gateway writes that has not heard of the stop: a copy of an accepted call."""
    stream = subjects.journal_stream("local", shard_of(call))
    stored = await world.bus.get_last(stream, subjects.call("local", pool, call, 0))
    assert stored is not None
    late = replace(CallRequested.decode(stored.data), call=new_call_id(SHARDS))
    await world.bus.publish(subjects.call("local", pool, late.call, 0), late.encode())
    return late.call


async def test_apps_that_were_stopped_long_ago_are_forgotten_and_deployed_ones_are_kept(world: World) -> None:
    fleeting, kept, running = await world.publish(), await deploy(world, "kept"), await world.publish()
    for app in (fleeting, kept):
        await world.http.post(f"/v1/apps/{app['app_id']}/stop")

    await tidy_after(world, days=7)
    assert await world.bus.kv("apps").get(fleeting["app_id"]) is not None
    await tidy_after(world, days=9)

    assert await world.bus.kv("apps").get(fleeting["app_id"]) is None
    assert await world.bus.kv("specs").get(fleeting["functions"]["double"]) is None
    for app in (kept, running):
        assert await world.bus.kv("apps").get(app["app_id"]) is not None


async def tidy_after(world: World, days: int) -> None:
    """What a gateway does once an hour, some days from now."""
    bus, clock, directory = world.bus, FakeClock(time.time() + days * 86400), Directory(world.bus)
    blobs, images = BlobPlaces(Blobs(str(world.folder / "blobs"), {}, 1)), ImageRecords(bus, clock)
    apps = Apps(
        bus,
        directory,
        Pools(bus, directory, clock),
        blobs,
        clock,
        Secrets(bus, Sealer(""), clock),
        Addresses(directory.web, ""),
        NameClaims(bus, clock),
        WebhookUsers(bus, Signing(bus, Sealer(""), clock), TargetRules(), clock),
        Objects(bus, clock),
        images,
        ImageSources(blobs, images),
    )
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(directory.run())
        await directory.synced()
        await Stopping(apps, Cancels(bus, directory, Results(bus, clock), clock), clock).tidy()
        following.cancel()
