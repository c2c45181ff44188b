"""Callers choose the ids of calls. Whoever sends the id of another workspace's call is told nothing of that call."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest
from tests.services.gateway.world import World, a_function, a_generator, call_headers, only_frame, succeeded
from tests.support.eventually import eventually

from squall.http_api.protocol import FrameKind, Header, frames
from squall.http_api.routes import Route
from squall.spec import FunctionSpec, to_wire
from squall_contracts.functions import pool_id
from squall_gateway.auth import create_token

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def a_stranger(world: World, name: str, spec: FunctionSpec) -> tuple[httpx.AsyncClient, dict[str, Any]]:
    """A client of another workspace, and an app there."""
    token = await create_token(world.bus, name, "workspace", "test", now=1.0)
    http = await world.client(str(world.http.base_url), token)
    body = {"name": "shop", "mode": "detached", "functions": [to_wire(spec)]}
    return http, (await http.post(Route.APPS, json=body)).json()


async def waiting(world: World, requests: int) -> bool:
    """Whether so many requests wait for a result."""
    told = (await world.http.get("/metrics")).text
    return re.search(rf"^squall_gateway_waits(?:{{.*}})? {requests}(?:\.0)?$", told, re.MULTILINE) is not None


async def test_a_reply_goes_to_the_workspace_of_its_call(world: World) -> None:
    app, (stranger, other) = await world.publish(), await a_stranger(world, "of-calls", a_function())
    agent = world.agent(lambda _: None)
    await agent.serve(pool_id(app["functions"]["double"]))
    headers = call_headers(app)
    same = {**call_headers(other), Header.CALL: headers[Header.CALL]}
    async with asyncio.TaskGroup() as tasks:
        mine = tasks.create_task(world.http.post(f"{Route.CALLS}?wait=30", headers=headers, content=b"secret"))
        await eventually(lambda: agent.seen)
        theirs = tasks.create_task(stranger.post(f"{Route.CALLS}?wait=50", headers=same, content=b"x"))
        await eventually(lambda: waiting(world, 2))
        await agent.finish(agent.seen[0], succeeded(agent.seen[0]))
        assert only_frame((await mine).content).payload == b"secret"
        await eventually(lambda: waiting(world, 1))
        theirs.cancel()
    await agent.stop()


async def test_calls_of_two_workspaces_with_one_id_are_both_accepted(world: World) -> None:
    app, (stranger, other) = await world.publish(), await a_stranger(world, "of-spawns", a_function())
    headers = call_headers(app, kind="spawn")
    same = {**call_headers(other, kind="spawn"), Header.CALL: headers[Header.CALL]}
    told = [
        (await http.post(Route.CALLS, headers=sent, content=b"x")).json()
        for http, sent in ((stranger, same), (world.http, headers), (world.http, headers))
    ]

    agent = world.agent()
    await agent.serve(pool_id(app["functions"]["double"]))
    await eventually(lambda: len(agent.seen) == 1)
    assert (agent.seen[0].call, agent.seen[0].workspace) == (headers[Header.CALL], "main")
    assert told[0] == told[1], "whether the id was there is not told"
    await agent.stop()


async def test_items_go_to_the_workspace_of_their_call(world: World) -> None:
    app, (stranger, other) = await world.publish(a_generator()), await a_stranger(world, "of-items", a_generator())
    agent, told = world.agent(lambda _: None), bytearray()
    await agent.serve(pool_id(app["functions"]["count"]))
    headers = call_headers(app, "count", kind="generator")
    same = {**call_headers(other, "count", kind="generator"), Header.CALL: headers[Header.CALL]}

    async def listen() -> None:
        async with stranger.stream("POST", Route.CALLS, headers=same, content=b"x") as answer:
            async for part in answer.aiter_raw():
                told.extend(part)

    async with asyncio.TaskGroup() as tasks:
        mine = tasks.create_task(world.http.post(Route.CALLS, headers=headers, content=b"x"))
        await eventually(lambda: agent.seen)
        theirs = tasks.create_task(listen())
        await eventually(lambda: waiting(world, 2))
        [request] = agent.seen
        agent.send_item(request, "1-aaaaaa", 0, b"secret")
        await agent.finish(request, succeeded(request, b"", "1-aaaaaa", items=1))
        found = frames.Decoder().feed((await mine).content)
        theirs.cancel()
    assert [each.payload for each in found if each.kind == FrameKind.ITEM] == [b"secret"]
    assert b"secret" not in told
    await agent.stop()
