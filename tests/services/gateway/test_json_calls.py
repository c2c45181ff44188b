"""Calls in JSON: what is taken, what is refused and how, and how results get back. The agent is a stand-in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.services.gateway.world import (
    TinyAgent,
    World,
    a_function,
    a_generator,
    a_world,
    call_headers,
    error_of,
    succeeded,
)

from squall.spec import MethodSpec, ParameterSpec
from squall_contracts.calls import CallRequested, CallResult
from squall_contracts.functions import pool_id
from squall_gateway.auth import create_token
from squall_gateway.json_bodies import MAX_BODY_BYTES

pytestmark = pytest.mark.asyncio(loop_scope="module")

A_CLASS = a_function(
    "Model",
    is_class=True,
    methods=(MethodSpec("predict"), MethodSpec("train")),
    parameters=(
        ParameterSpec("size", "int", True, 3),
        ParameterSpec("key", "bytes"),
        ParameterSpec("on", "bool", True),
    ),
)


def echo(request: CallRequested) -> CallResult:
    return replace(succeeded(request), encoding="json")


async def served(world: World, agent: TinyAgent) -> dict[str, Any]:
    """An app whose function is answered with its own arguments."""
    app = await world.publish()
    agent.answer = echo
    await agent.serve(pool_id(app["functions"]["double"]))
    return app


async def post(world: World, app: dict[str, Any], path: str, body: Any = None, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
    return await world.http.post(f"/v1/apps/{app['app_id']}/functions/{path}", content=content, headers=named)


async def test_a_call_is_stored_as_json_and_answered_with_its_result(world: World, agent: TinyAgent) -> None:
    app = await served(world, agent)
    answer = await post(world, app, "double/call", {"args": [1, "ü"], "kwargs": {"a": None}})
    assert answer.status_code == 200
    told = answer.json()
    assert told["result"] == {"args": [1, "ü"], "kwargs": {"a": None}}
    [request] = agent.seen
    assert (request.call, request.encoding, request.kind) == (told["call"], "json", "remote")


async def test_the_same_key_is_one_call_whatever_the_spacing_and_another_body_is_a_409(
    world: World, agent: TinyAgent
) -> None:
    app = await served(world, agent)
    first = await post(world, app, "double/call", b'{"args": [1]}', Idempotency_Key="order")
    again = await post(world, app, "double/call", b'{ "args":[ 1 ] }', Idempotency_Key="order")
    assert first.json() == again.json()
    assert len(agent.seen) == 1

    other = await post(world, app, "double/call", {"args": [2]}, Idempotency_Key="order")
    assert (other.status_code, error_of(other)["code"]) == (409, "idempotency_conflict")
    spawned = await post(world, app, "double/spawn", {"args": [1]}, Idempotency_Key="order")
    assert spawned.json()["call"] == first.json()["call"]
    many = await post(world, app, "double/map", {"inputs": [[1]]}, Idempotency_Key="order")
    assert error_of(many)["code"] == "invalid"


async def test_without_a_result_in_time_the_answer_says_where_to_ask_again(world: World, agent: TinyAgent) -> None:
    app = await served(world, agent)
    agent.answer = lambda request: None
    answer = await post(world, app, "double/call?wait=0.05")
    assert answer.status_code == 202
    assert (await world.http.get(answer.json()["output"])).status_code == 202

    await agent.finish(agent.seen[-1], replace(succeeded(agent.seen[-1], b"7"), encoding="json"))
    ended = await world.http.get(answer.json()["output"], params={"wait": 20})
    assert (ended.status_code, ended.json()["result"]) == (200, 7)


async def test_a_result_that_is_no_json_is_refused_with_a_way_to_read_it(world: World, agent: TinyAgent) -> None:
    app = await served(world, agent)
    agent.answer = succeeded
    pickled = await world.http.post("/v1/calls?wait=20", headers=call_headers(app), content=b"x")
    call = agent.seen[-1].call
    assert pickled.status_code == 200
    answer = await world.http.get(f"/v1/calls/{call}/output")
    assert answer.status_code == 400
    assert "encoded as pickle" in error_of(answer)["message"]
    assert "FunctionCall" in error_of(answer)["fix"]


async def test_class_parameters_are_those_of_the_sdk(world: World, agent: TinyAgent) -> None:
    app = await world.publish(A_CLASS)
    spawned = await post(world, app, "Model.train/spawn", {"parameters": {"key": "AP8=", "on": False}})
    assert spawned.status_code == 202, spawned.text
    function = app["functions"]["Model"]
    from squall.http_api.protocol import encode_parameters  # what the SDK would send

    await agent.serve(pool_id(function, encode_parameters({"key": b"\x00\xff", "on": False, "size": 3})))
    answer = await world.http.get(spawned.json()["output"], params={"wait": 20})
    assert error_of(answer)["message"].startswith("the result is encoded as pickle")  # the stand-in's own result
    assert agent.seen[-1].method == "train"


NO_JSON: list[tuple[str, Any, str]] = [
    ("double/call", b"{", "not JSON"),
    ("double/call", b"\xff\xfe", "not JSON"),
    ("double/call", b'{"args": [NaN]}', "NaN is not JSON"),
    ("double/call", b"[" * 200_000, "nested too deeply"),
    ("double/call", b"[1]", "the body is a list"),
    ("double/call", {"arguments": []}, "unknown field 'arguments'"),
    ("double/call", {"args": {"x": 1}}, "`args` is an object, not a list"),
    ("double/call", {"kwargs": None}, "`kwargs` is null"),
    ("double/call", {"inputs": []}, "unknown field 'inputs'"),
    ("double/call", {"parameters": {"x": 1}}, "has no parameter 'x'"),
    ("double/map", {}, "no `inputs`"),
    ("double/map", {"inputs": [[1], 2]}, "inputs[1]"),
    ("double/map", {"inputs": [{"arg": []}]}, "inputs[0]"),
    ("double/spawn", {"args": [1], "inputs": [[1]]}, "both `args` and `inputs`"),
    ("double/call?wait=-1", {}, "wait"),
    ("double/call?wait=61", {}, "wait"),
    ("Model/call", {}, "must name a method"),
    ("Model.predict/call", {}, "needs the parameter 'key'"),
    ("Model.predict/call", {"parameters": {"key": "no base64"}}, "must be base64 text"),
    ("Model.predict/call", {"parameters": {"key": "", "on": True, "size": "3"}}, "must be int"),
    ("Model.predict/call", {"parameters": {"key": "", "on": True, "size": True}}, "must be int"),
]


@pytest.mark.parametrize(("path", "body", "told"), NO_JSON)
async def test_what_is_no_call_is_refused_in_words(world: World, path: str, body: Any, told: str) -> None:
    app = await world.publish(a_function(), A_CLASS)
    answer = await post(world, app, path, body)
    assert answer.status_code == 400, answer.text
    assert told in error_of(answer)["message"]
    assert error_of(answer)["fix"]


async def test_limits_rights_and_names_have_their_own_status(world: World) -> None:
    app = await world.publish(a_function(), A_CLASS, a_generator())
    assert (await post(world, app, "nothing/call")).status_code == 404
    assert (await post(world, app, "Model.nothing/call")).status_code == 404
    assert (await post(world, {"app_id": "ap-nothing"}, "double/call")).status_code == 404
    assert (await post(world, {"app_id": "nothing"}, "double/call")).status_code == 404
    assert (await post(world, app, "double/call", b" " * (MAX_BODY_BYTES + 1))).status_code == 413
    assert (await post(world, app, "double/map", {"inputs": [[]] * 1001})).status_code == 413
    assert error_of(await post(world, app, "count/spawn"))["code"] == "invalid"  # its items would have no reader
    stranger = await world.client(world.url or str(world.http.base_url), "")
    assert (await stranger.post(f"/v1/apps/{app['app_id']}/functions/double/call")).status_code == 401


async def test_too_many_pending_inputs_are_a_429(tmp_path: Path) -> None:
    async with a_world(tmp_path, max_pending=3) as world:
        app = await world.publish()
        taken = [await post(world, app, "double/spawn", {"args": [n]}) for n in range(4)]
        assert [answer.status_code for answer in taken] == [202, 202, 202, 429]
        assert taken[-1].headers["retry-after"]


async def test_a_token_of_scope_caller_makes_calls_and_nothing_else(world: World, agent: TinyAgent) -> None:
    app = await served(world, agent)
    token = await create_token(world.bus, "main", "caller", "backend", now=1.0)
    backend = await world.client(str(world.http.base_url), token)
    answer = await backend.post(f"/v1/apps/{app['app_id']}/functions/double/call", json={"args": [1]})
    assert answer.status_code == 200
    assert (await backend.get(f"/v1/calls/{answer.json()['call']}/output")).status_code == 200
    for method, path in (("GET", "/v1/apps"), ("GET", "/v1/tokens"), ("POST", f"/v1/apps/{app['app_id']}/stop")):
        assert (await backend.request(method, path)).status_code == 403, path
