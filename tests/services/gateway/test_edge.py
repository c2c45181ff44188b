"""What every request has in common: tokens, ids, errors, health, the OpenAPI document, the drain."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter
from tests.services.gateway.test_maps import results_of
from tests.services.gateway.world import (
    SHARDS,
    TinyAgent,
    World,
    a_world,
    call_headers,
    error_of,
    only_frame,
)
from tests.support.clock import FakeClock
from tests.support.eventually import eventually

from squall.errors import PortInUseError, SquallError, catalogue
from squall.http_api.protocol import Header
from squall.http_api.routes import Route
from squall.ids import new_call_id
from squall_contracts.functions import TokenRecord, pool_id
from squall_gateway.app import build
from squall_gateway.auth import Tokens, create_token, token_key
from squall_gateway.blobs import Blobs
from squall_gateway.condition import Condition
from squall_gateway.edge import Edge, Exchange
from squall_gateway.metrics import Requests
from squall_gateway.server import listen, url_of
from squall_service.clock import SystemClock
from squall_service.health import Health

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def with_token(world: World, token: str) -> httpx.AsyncClient:
    return await world.client(str(world.http.base_url), token)


@pytest.mark.parametrize("header", ["", "Basic abc", "Bearer", "Bearer wrong"])
async def test_requests_without_a_known_token_are_refused(world: World, header: str) -> None:
    answer = await world.http.get("/v1/info", headers={"Authorization": header})

    assert (answer.status_code, error_of(answer)["code"]) == (401, "auth")
    assert "SQUALL_TOKEN" in error_of(answer)["fix"]


async def test_info_says_what_a_client_must_know(world: World) -> None:
    info = (await world.http.get("/v1/info")).json()

    assert (info["region"], info["shards"], info["workspace"], info["api_version"]) == ("local", SHARDS, "main", 1)
    assert info["durability"] == "fsync always"


async def test_a_containers_token_makes_calls_and_nothing_else(world: World, agent: TinyAgent) -> None:
    app = await world.publish()
    inside = await with_token(world, await create_token(world.bus, "main", "container", "c", now=0))
    await agent.serve(pool_id(app["functions"]["double"]))

    allowed = await inside.post("/v1/calls?wait=10", headers=call_headers(app), content=b"x")
    for method, path in [("POST", "/v1/apps"), ("GET", "/v1/apps"), ("GET", "/v1/nodes"), ("POST", "/v1/images")]:
        refused = await inside.request(method, path)
        assert (refused.status_code, error_of(refused)["code"]) == (403, "permission_denied"), path

    assert only_frame(allowed.content).payload == b"x"


async def test_a_token_is_stored_as_its_hash_only_and_creating_it_twice_is_nothing(world: World) -> None:
    token = await create_token(world.bus, "main", "workspace", "twice", now=1)
    assert await create_token(world.bus, "main", "workspace", "twice", now=2, token=token) == token

    entries = await world.bus.kv("tokens").entries()
    assert token_key(token.encode()) in {entry.key for entry in entries}
    assert not any(token.encode() in entry.value or token in entry.key for entry in entries)


async def test_a_token_that_has_expired_or_was_revoked_no_longer_works(tmp_path: Path) -> None:
    clock = FakeClock(1_000_000_000.0)
    async with a_world(tmp_path, clock=clock) as world:
        record = TokenRecord("main", "short", "workspace", created_at=0, expires_at=clock.now() + 60)
        await world.bus.kv("tokens").put(token_key(b"short-lived"), record.encode())
        short, lasting = await with_token(world, "short-lived"), world.http
        assert (await short.get("/v1/info")).status_code == 200
        await clock.advance(61)
        expired = await short.get("/v1/info")
        assert (expired.status_code, "expired" in error_of(expired)["message"]) == (401, True)

        assert (await lasting.get("/v1/info")).status_code == 200
        await world.bus.kv("tokens").delete(token_key(world.token.encode()))
        await clock.advance(11)
        assert (await lasting.get("/v1/info")).status_code == 401


async def test_calls_of_one_workspace_are_unknown_in_another(world: World, agent: TinyAgent) -> None:
    app = await world.publish()
    headers = call_headers(app)
    await agent.serve(pool_id(app["functions"]["double"]))
    await world.http.post("/v1/calls?wait=10", headers=headers, content=b"x")
    stranger = await with_token(world, await create_token(world.bus, "other", "workspace", "s", now=0))
    call = headers[Header.CALL]

    for answer in (
        await stranger.get(f"/v1/calls/{call}/result"),
        await stranger.get(f"/v1/calls/{call}"),
        await stranger.get(f"/v1/calls/{call}/trace"),
        await stranger.post(f"/v1/calls/{call}/cancel"),
    ):
        assert answer.status_code == 404, answer.request.url
    assert (await stranger.get("/v1/calls")).json() == {"calls": [], "missing": ""}


async def test_every_answer_has_a_request_id_and_every_error_the_same_form(world: World) -> None:
    answers = [
        await world.http.get("/v1/nowhere"),
        await world.http.delete("/v1/calls"),
        await world.http.post("/v1/apps", json=[]),
        await world.http.get(f"/v1/calls/{new_call_id(SHARDS)}"),
        await world.http.post("/v1/calls"),
    ]

    for answer in answers:
        error = error_of(answer)
        assert set(error) >= {"code", "message", "fix", "retryable", "data"}
        assert issubclass(catalogue()[error["code"]], SquallError)
    assert [answer.status_code for answer in answers] == [404, 405, 400, 404, 400]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


async def test_health_readiness_and_metrics_need_no_token(world: World) -> None:
    await world.http.get("/v1/info")
    await world.http.get(f"/v1/calls/{new_call_id(SHARDS)}/result")
    async with httpx.AsyncClient(base_url=world.http.base_url) as anybody:
        assert (await anybody.get("/healthz")).status_code == 200
        assert (await anybody.get("/readyz")).json() == {}
        await anybody.get("/v1/info")
        metrics = (await anybody.get("/metrics")).text

    for line in (
        'route="other",status="401"',
        'route="/v1/info",status="200"',
        'route="/v1/calls/*/result",status="404"',
    ):
        assert f"squall_gateway_requests_total{{{line}}}" in metrics


async def test_the_openapi_document_has_every_route_and_the_form_of_errors(world: World) -> None:
    document = (await world.http.get("/openapi.json")).json()

    routes = {value for name, value in vars(Route).items() if name.isupper()}
    kinds = {path.replace("{kind}", kind) for path in document["paths"] for kind in ("dicts", "queues", "volumes")}
    assert routes <= set(document["paths"]) | kinds
    assert set(document["paths"]["/v1/calls"]) == {"get", "post"}
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert all(operation["responses"]["default"] for operation in operations)
    assert document["paths"]["/v1/calls"]["post"]["security"] == [{"token": []}]
    assert "422" not in str([list(operation["responses"]) for operation in operations])


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError) as refusal:
            listen("127.0.0.1", port)

    assert refusal.value.code == "port_in_use"
    assert str(port) in refusal.value.message
    assert "SQUALL_GATEWAY_PORT" in refusal.value.hint


async def test_any_free_port_can_be_asked_for() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_stopping_gateway_tells_who_waits_to_ask_again_and_ends(world: World, agent: TinyAgent) -> None:
    app = await world.publish()
    running, client = await world.start_gateway()
    headers, call = call_headers(app), new_call_id(SHARDS)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(10):
        waiting = tasks.create_task(client.post("/v1/calls?wait=30", headers=headers, content=b"x"))
        streaming = tasks.create_task(_drain(client, call))

        async def both_wait() -> bool:
            return (await world.http.get(f"/v1/calls/{headers[Header.CALL]}")).status_code == 200

        await eventually(both_wait)
        await running.stop()

    assert waiting.result().status_code == 202
    assert running.drained
    assert streaming.result() == 0
    await agent.serve(pool_id(app["functions"]["double"]))
    elsewhere = await world.http.get(f"/v1/calls/{headers[Header.CALL]}/result?wait=10")
    assert only_frame(elsewhere.content).payload == b"x"
    with pytest.raises(httpx.ConnectError):
        await client.get("/v1/info")


async def _drain(client: httpx.AsyncClient, call: str) -> int:
    """How many frames came before the stream ended by itself."""
    async with results_of(client, call) as results:
        count = 0
        while True:
            try:
                await results.next()
            except StopAsyncIteration:
                return count
            count += 1


async def test_a_bug_of_ours_is_answered_with_an_id_under_which_the_stack_is_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    router = APIRouter()

    @router.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the secret")

    async def hot(exchange: Exchange, _: str) -> None:
        raise RuntimeError("the secret")

    condition = Condition(world.bus, Blobs("memory:///", {}, 1), SystemClock())
    app = build("0", [router], Health(), lambda: b"")
    edge = Edge(Tokens(world.bus, SystemClock()), condition, Requests(), {("GET", "/hot"): hot}, app)
    transport = httpx.ASGITransport(edge, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answers = [await client.get("/broken"), await client.get("/hot")]
    condition.close()

    for answer in answers:
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (500, "internal")
        assert "the secret" not in answer.text
        logged = [r for r in caplog.records if r.exc_info and error["request"] in str(r.__dict__["fields"])]
        assert "the secret" in str(logged[0].exc_info)
