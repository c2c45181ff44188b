"""Web functions at the gateway: who has which name, what is passed on, who waits. No container answers here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import pytest_asyncio
from tests.services.gateway.world import World, a_function, a_world, error_of

from squall.errors import WebFunctionError
from squall.http_api import Route, frames
from squall.spec import MethodSpec, WebSpec, to_wire
from squall_contracts.functions import AppRecord
from squall_gateway.auth import create_token
from squall_gateway.web.addresses import Addresses
from squall_gateway.web.forward import answer_headers
from squall_gateway.web.names import WebNames
from squall_gateway.web.upstream import Busy, Unreachable, Upstream
from squall_gateway.web.websocket import websocket
from squall_gpu_agent.settings import AgentSettings
from squall_gpu_agent.web.door import Door

pytestmark = pytest.mark.asyncio(loop_scope="module")

OWN = "squall.example.com"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("world")
    async with a_world(folder, web_url=f"http://{OWN}", web_hold_s=1.0, web_max_held=1) as world:
        yield world


def page(**web: Any) -> dict[str, Any]:
    declared = WebSpec("asgi", **web)
    return to_wire(a_function("page", methods=(MethodSpec(web=declared),)))


async def publish(client: httpx.AsyncClient, name: str, **more: Any) -> httpx.Response:
    body = {"name": name, "mode": "deployed", "functions": [page()], **more}
    return await client.post(Route.APPS, json=body)


# --- names ---


@pytest.mark.parametrize("domain", [OWN, f"docs.{OWN}", "Shop.example.com", "10.0.0.1", "nodot"])
async def test_nobody_can_have_a_name_of_the_platform_or_one_that_is_no_host(world: World, domain: str) -> None:
    answer = await publish(world.http, "thief", functions=[page(custom_domains=(domain,))])
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid")
    assert domain in error_of(answer)["message"]


async def test_requests_for_the_platform_stay_with_it_whatever_a_record_says() -> None:
    names = WebNames()
    record = AppRecord(
        app_id="ap-1", name="thief", workspace="w", environment="main", state="deployed", version=1, functions={},
        created_at=1.0, updated_at=1.0, web={OWN: "page", f"api.{OWN}": "page", "shop.example.com": "page"},
    )  # fmt: skip
    names.saw(record)
    addresses = Addresses(names, f"https://{OWN}")

    assert addresses.addressed(OWN.encode(), "/v1/info") is None
    assert addresses.addressed(f"api.{OWN}:443".encode(), "/v1/info") is None
    found = addresses.addressed(b"shop.example.com", "/")
    assert found is not None
    assert found.name == "shop.example.com"


async def test_no_workspace_takes_over_an_address_of_another(world: World) -> None:
    token = await create_token(world.bus, "main-eu", "workspace", "x", now=1.0)
    stranger = await world.client(str(world.http.base_url), token)
    assert (await publish(stranger, "till", mode="detached")).status_code == 200

    taken = await publish(world.http, "till", mode="detached", environment="eu")

    assert (taken.status_code, error_of(taken)["code"]) == (409, "conflict")
    assert "another workspace" in error_of(taken)["message"]
    assert (await publish(stranger, "till", mode="detached")).status_code == 200  # at home the newest has it


async def test_going_back_to_a_version_does_not_take_a_name_that_is_anothers_now(world: World) -> None:
    for domain in ("a.example.com", "b.example.com"):
        answer = await publish(world.http, "first", functions=[page(custom_domains=(domain,))])
        assert answer.status_code == 200
    answer = await publish(world.http, "second", functions=[page(custom_domains=("a.example.com",))])
    assert answer.status_code == 200

    back = await world.http.post(Route.APP_ROLLBACK.format(app="first"), json={})

    assert (back.status_code, error_of(back)["code"]) == (409, "conflict")
    assert "a.example.com" in error_of(back)["message"]


# --- who waits ---


async def test_more_requests_than_may_wait_are_told_so(world: World) -> None:
    assert (await publish(world.http, "busy")).status_code == 200

    answers = await asyncio.gather(*(world.http.get("/web/main--busy-page/") for _ in range(3)))

    messages = sorted(error_of(answer)["message"] for answer in answers)
    assert [answer.status_code for answer in answers] == [503, 503, 503]
    assert all("retry-after" in answer.headers for answer in answers)
    assert [("already" in message) for message in messages].count(True) == 2, messages


# --- agents ---


async def test_an_agent_that_has_started_again_does_not_count_as_busy(tmp_path: Path) -> None:
    async with asyncio.timeout(20):
        door: Any = Door(AgentSettings(), SimpleNamespace(get=lambda pool: None), None, None)  # type: ignore[arg-type]
        opening = {"type": "http"}
        async with door.listen(tmp_path):
            with pytest.raises(Busy):
                await Upstream.ask(door.address, {"pool": "p", "key": door.key}, opening)
            with pytest.raises(Unreachable):
                await Upstream.ask(door.address, {"pool": "p", "key": "of its last life"}, opening)


# --- answers ---


@pytest.mark.parametrize(
    "header",
    [
        ("x-a", "1\r\nset-cookie: b"),
        ("x-a", "1\rset-cookie: b"),
        ("x-a", "\0"),
        ("transfer-encoding ", "chunked"),
        ("transfer-encoding: chunked\r\nx", "1"),
        ("", "1"),
        ("content-length", "-1"),
        ("content-length", "5, 6"),
    ],
)
async def test_headers_that_could_be_read_as_something_else_are_not_passed_on(header: tuple[str, str]) -> None:
    with pytest.raises(WebFunctionError):
        answer_headers([("content-type", "text/plain"), header])


async def test_an_answer_has_one_length_and_says_nothing_about_the_connection() -> None:
    told = [("Content-Length", "5"), ("Transfer-Encoding", "chunked"), ("Connection", "x"), ("X-A", "é\t")]
    assert answer_headers(told) == [(b"content-length", b"5"), (b"x-a", "é\t".encode("latin-1"))]
    with pytest.raises(WebFunctionError):
        answer_headers([("content-length", "5"), ("content-length", "6")])


@pytest.mark.parametrize(
    "accept",
    [
        {"subprotocol": None, "headers": [("x-a", "1\r\n\r\nHTTP/1.1 200 OK")]},
        {"subprotocol": "chat\r\nset-cookie: b", "headers": []},
    ],
)
async def test_a_websocket_is_not_opened_with_such_headers(accept: dict[str, Any]) -> None:
    sent: list[MutableMapping[str, Any]] = []

    class Link:
        async def receive(self) -> frames.Frame:
            return frames.Frame(frames.Web.ACCEPT, accept)

        async def send(self, kind: int, meta: dict[str, Any], payload: bytes = b"") -> None:
            raise AssertionError("nothing is sent to it")

    async def receive() -> MutableMapping[str, Any]:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    with pytest.raises(WebFunctionError):
        await websocket(Link(), receive, send, 20.0)
    assert sent == []
