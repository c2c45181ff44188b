"""Variants of functions, and scaling that is changed while it is in use."""

from __future__ import annotations

from typing import Any

import pytest
from tests.services.gateway.world import World, a_function, call_headers, error_of

from squall.http_api.protocol import Header, encode_options
from squall.http_api.routes import Route
from squall.spec import Options, ScalingPolicy
from squall_contracts.functions import FunctionRecord, PoolRecord, pool_id, pool_key
from squall_gateway.auth import create_token

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def spawn(world: World, app: dict[str, Any], options: str = "", **more: str) -> str:
    """The pool that a call with these options goes to."""
    headers = {**call_headers(app, kind="spawn", **more), **({Header.OPTIONS: options} if options else {})}
    answer = await world.http.post(Route.CALLS, params={"wait": 0}, headers=headers, content=b"x")
    assert answer.status_code == 202, answer.text
    return await pool_of(world, headers[Header.CALL])


async def pool_of(world: World, call: str) -> str:
    return str((await world.http.get(Route.CALL.format(call=call))).json()["pool"])


async def record_of(world: World, pool: str) -> tuple[PoolRecord, FunctionRecord]:
    specs = world.bus.kv("specs")
    entry = await specs.get(pool_key(pool))
    assert entry is not None
    record = PoolRecord.decode(entry.value)
    function = await specs.get(record.function_id)
    assert function is not None
    return record, FunctionRecord.decode(function.value)


async def test_calls_with_options_have_a_pool_whose_function_has_them(world: World) -> None:
    app = await world.publish(a_function(scaling=ScalingPolicy(min_containers=1, max_containers=4)), name="variants")
    options = encode_options(Options(timeout_s=7, max_containers=2))

    plain, variant = await spawn(world, app), await spawn(world, app, options)

    assert plain != variant
    assert await spawn(world, app, options) == variant
    assert await spawn(world, app, encode_options(Options(timeout_s=8))) not in (plain, variant)
    _, function = await record_of(world, variant)
    assert function.spec.timeout_s == 7
    assert function.spec.scaling == ScalingPolicy(max_containers=2)
    assert (function.variant_of, function.published_id) == (app["functions"]["double"],) * 2


async def test_a_repeated_request_with_options_is_the_same_call(world: World) -> None:
    app = await world.publish(name="repeated-options")
    options = encode_options(Options(timeout_s=7))
    pool = await spawn(world, app, options)
    record, _ = await record_of(world, pool)

    # What pinning makes of a request that comes long after its call was accepted.
    assert await spawn(world, app, options, function_id=record.function_id) == pool


@pytest.mark.parametrize("options", ["not base64!", encode_options(Options()) + "e30x", "eyJ3YXJwIjogOX0="])
async def test_options_that_cannot_be_read_are_refused(world: World, options: str) -> None:
    app = await world.publish(name="bad-options")
    headers = {**call_headers(app, kind="spawn"), Header.OPTIONS: options}
    answer = await world.http.post(Route.CALLS, params={"wait": 0}, headers=headers)
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "invalid"


async def scaling(world: World, app: dict[str, Any], **changes: Any) -> dict[str, Any]:
    body = {"pool": {"app_id": app["app_id"], "function": "double"}, **changes}
    answer = await world.http.post(Route.FUNCTION_SCALING, json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_scaling_is_changed_in_parts_and_stored_with_the_pool(world: World) -> None:
    app = await world.publish(a_function(scaling=ScalingPolicy(max_containers=4)), name="scaled", mode="deployed")

    assert await scaling(world, app) == {
        "min_containers": 0,
        "max_containers": 4,
        "buffer_containers": 0,
        "scaledown_window_s": 60.0,
    }
    await scaling(world, app, min_containers=2)
    now = await scaling(world, app, max_containers=0, scaledown_window_s=10)

    assert now == {"min_containers": 2, "max_containers": None, "buffer_containers": 0, "scaledown_window_s": 10.0}
    record, function = await record_of(world, pool_id(app["functions"]["double"]))
    assert record.scaling == ScalingPolicy(min_containers=2, scaledown_window_s=10)
    assert record.scaled(function).spec.scaling == record.scaling
    assert function.spec.scaling == ScalingPolicy(max_containers=4)


async def test_a_deploy_brings_the_declared_scaling_back(world: World) -> None:
    app = await world.publish(name="reset", mode="deployed")
    await scaling(world, app, min_containers=2)

    again = await world.publish(name="reset", mode="deployed")

    assert again["unchanged"]
    assert (await scaling(world, app))["min_containers"] == 0
    await scaling(world, app, min_containers=2)
    changed = await world.publish(a_function(timeout_s=9), name="reset", mode="deployed")
    assert changed["version"] == 2
    assert (await scaling(world, app))["min_containers"] == 0


async def test_scaling_that_contradicts_itself_is_refused(world: World) -> None:
    app = await world.publish(a_function(scaling=ScalingPolicy(max_containers=2)), name="contradiction")
    body = {"pool": {"app_id": app["app_id"], "function": "double"}, "min_containers": 3}
    answer = await world.http.post(Route.FUNCTION_SCALING, json=body)
    assert answer.status_code == 400
    assert "max_containers must not be less than min_containers" in error_of(answer)["message"]


async def test_nothing_is_kept_warm_for_calls_with_options(world: World) -> None:
    app = await world.publish(name="warm-options")
    options = encode_options(Options(timeout_s=7))
    pool = {"app_id": app["app_id"], "function": "double", "options": options}
    answer = await world.http.post(Route.FUNCTION_SCALING, json={"pool": pool, "min_containers": 1})
    assert answer.status_code == 400
    assert "min_containers" in error_of(answer)["message"]


async def test_stats_tell_the_backlog(world: World) -> None:
    app = await world.publish(name="stats")
    for _ in range(3):
        await spawn(world, app)
    body = {"app_id": app["app_id"], "function": "double"}
    answer = await world.http.post(Route.FUNCTION_STATS, json=body)
    assert answer.json() == {"backlog": 3, "num_total_runners": 0, "num_running_inputs": 0, "input_headroom": 0}


async def test_tags_are_replaced(world: World) -> None:
    app = await world.publish(name="tagged", tags={"a": "1", "b": "2"})
    path = Route.APP_TAGS.format(app=app["app_id"])

    assert (await world.http.post(path, json={"tags": {"c": "3"}})).json() == {"tags": {"c": "3"}}
    assert (await world.http.get(path)).json() == {"tags": {"c": "3"}}
    assert (await world.http.post(path, json={"tags": {"c": "x" * 64}})).status_code == 400


async def test_an_app_that_is_there_is_not_changed_by_only_new(world: World) -> None:
    first = await world.publish(name="kept", mode="deployed")
    body = {"name": "kept", "mode": "deployed", "functions": [], "only_new": True}
    answer = (await world.http.post(Route.APPS, json=body)).json()
    assert (answer["app_id"], answer["unchanged"], answer["functions"]) == (first["app_id"], True, first["functions"])


async def test_a_token_that_only_calls_changes_nothing_about_how_things_run(world: World) -> None:
    app = await world.publish(name="only-called")
    token = await create_token(world.bus, "main", "caller", "backend", now=1.0)
    caller = await world.client(str(world.http.base_url), token)

    options = {Header.OPTIONS: encode_options(Options(env={"LD_PRELOAD": "/tmp/x.so"}))}
    called = await caller.post(
        Route.CALLS, params={"wait": 0}, headers={**call_headers(app, kind="spawn"), **options}, content=b"x"
    )
    body = {"pool": {"app_id": app["app_id"], "function": "double"}, "min_containers": 1}
    scaled = await caller.post(Route.FUNCTION_SCALING, json=body)

    assert [answer.status_code for answer in (called, scaled)] == [403, 403]
