"""Web functions at the gateway: who has which name, what is passed on, who waits. No container answers here."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import pytest_asyncio
from tests.services.gateway.test_images import Builder
from tests.services.gateway.world import World, a_function, a_world, error_of
from tests.support.eventually import eventually

from squall.errors import ConflictError, RequestLostError, ResourceExhaustedError, WebFunctionError
from squall.http_api.protocol import frames
from squall.http_api.routes import Route
from squall.spec import MethodSpec, ParameterSpec, WebSpec, to_wire
from squall_contracts.functions import AppRecord
from squall_gateway.auth import create_token
from squall_gateway.web.addresses import Addressed, Addresses
from squall_gateway.web.forward import answer_headers, scope_of
from squall_gateway.web.name_claims import NameClaims
from squall_gateway.web.names import WebNames
from squall_gateway.web.parking import send_away
from squall_gateway.web.routes import Routes, Wanted
from squall_gateway.web.server_http import request_head
from squall_gateway.web.upstream import Busy, Unreachable, Upstream
from squall_gateway.web.websocket import websocket
from squall_gpu_agent.settings import AgentSettings
from squall_gpu_agent.web.door import Door
from squall_service.clock import SystemClock

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


async def test_below_the_host_of_one_function_there_is_no_other() -> None:
    # Its page would be of the same origin: it got the cookies, and could do what the first one's page can.
    names = WebNames()
    record = AppRecord(
        app_id="ap-1", name="shop", workspace="w", environment="main", state="deployed", version=1, functions={},
        created_at=1.0, updated_at=1.0, web={"w--shop-page": "page", "shop.example.com": "page"},
    )  # fmt: skip
    names.saw(record)
    addresses = Addresses(names, f"https://{OWN}")

    for host, name in ((f"w--shop-page.{OWN}", "w--shop-page"), ("shop.example.com:443", "shop.example.com")):
        assert addresses.addressed(host.encode(), "/web/evil--app-page/") == Addressed(name, "")
    for host in (OWN, "127.0.0.1:8700", "gateway:8700"):
        found = addresses.addressed(host.encode(), "/web/w--shop-page/x")
        assert found == Addressed("w--shop-page", "/web/w--shop-page")


async def test_without_an_address_of_the_platform_nobody_has_a_domain_that_may_be_its_own() -> None:
    names = WebNames()
    method = MethodSpec(web=WebSpec("asgi", custom_domains=("api.example.org",)))
    record = AppRecord(
        app_id="ap-1", name="thief", workspace="w", environment="main", state="deployed", version=1, functions={},
        created_at=1.0, updated_at=1.0, web={"w--thief-page": "page", "api.example.org": "page"},
    )  # fmt: skip
    names.saw(record)
    addresses = Addresses(names, "")
    addresses.listens_at("http://127.0.0.1:8700")

    assert addresses.addressed(b"api.example.org", "/v1/info") is None
    [told] = addresses.of(record, a_function("page", methods=(method,)))
    assert told.url == "http://w--thief-page.localhost:8700"


async def test_what_a_client_says_about_proxies_is_not_passed_on() -> None:
    said = (b"x-forwarded-host", b"x-forwarded-prefix", b"x-forwarded-user", b"x-real-ip", b"forwarded")
    scope = {
        "type": "http", "path": "/web/a--b/", "raw_path": b"/web/a--b/", "query_string": b"", "scheme": "http",
        "client": ("9.9.9.9", 1), "method": "GET", "headers": [(name, b"6.6.6.6") for name in said],
    }  # fmt: skip

    sent = scope_of(scope, "/web/a--b")

    assert sent["headers"] == [("x-forwarded-for", "9.9.9.9"), ("x-forwarded-proto", "http")]
    assert request_head(sent, []).count(b"x-forwarded-prefix: /web/a--b\r\n") == 1


async def test_no_workspace_takes_over_an_address_of_another(world: World) -> None:
    token = await create_token(world.bus, "main-eu", "workspace", "x", now=1.0)
    stranger = await world.client(str(world.http.base_url), token)
    assert (await publish(stranger, "till", mode="detached")).status_code == 200

    await world.http.post(Route.ENVIRONMENTS, json={"name": "eu"})
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
    await Builder(world, a_function().image).answers(state="ready")

    back = await world.http.post(Route.APP_ROLLBACK.format(app="first"), json={})

    assert (back.status_code, error_of(back)["code"]) == (409, "conflict")
    assert "a.example.com" in error_of(back)["message"]


# --- pages of other origins ---


async def test_a_page_of_another_origin_may_ask_for_what_is_behind_a_token_and_read_why_it_gets_nothing(
    world: World,
) -> None:
    assert (await publish(world.http, "locked", functions=[page(requires_proxy_auth=True)])).status_code == 200
    asked = {"Origin": "http://pages.example.com", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization,x-own"

    preflight = await world.http.options("/web/main--locked-page/some", headers={**asked, "Authorization": ""})
    assert (preflight.status_code, preflight.content) == (200, b"")
    allowed = {name: value for name, value in preflight.headers.items() if name.startswith("access-control-allow")}
    assert allowed == {
        "access-control-allow-origin": "*",
        "access-control-allow-methods": "POST",
        "access-control-allow-headers": "authorization,x-own",
    }

    for refused in (
        await world.http.post("/web/main--locked-page/some", headers={"Authorization": "", "Origin": asked["Origin"]}),
        await world.http.options("/web/main--locked-page/some", headers={"Authorization": ""}),
    ):
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "*")
    api = await world.http.get("/v1/apps", headers={"Authorization": "", "Origin": asked["Origin"]})
    assert (api.status_code, "access-control-allow-origin" in api.headers) == (401, False)


# --- pages in the path form ---


async def test_what_a_page_asks_at_the_root_is_sent_below_its_prefix(world: World) -> None:
    assert (await publish(world.http, "paged", functions=[page(requires_proxy_auth=True)])).status_code == 200
    origin = str(world.http.base_url).rstrip("/")
    referer = {"Referer": f"{origin}/web/main--paged-page/form"}

    for path in ("/static/a%20b.js?v=1", "/v1/models", "//elsewhere/x"):
        answer = await world.http.request("POST", httpx.URL(origin + path), content=b"x", headers=referer)
        assert (answer.status_code, answer.headers["location"]) == (307, "/web/main--paged-page" + path)
    # It is sent there as anybody: whether it may is asked there.
    refused = await world.http.get("/api", headers={**referer, "Authorization": ""}, follow_redirects=True)
    assert (refused.status_code, error_of(refused)["code"]) == (401, "proxy_auth")

    for page_url in (f"{origin}/web/main--nobody-page/", "http://elsewhere/web/main--paged-page/", f"{origin}/v1/x"):
        answer = await world.http.get("/api", headers={"Referer": page_url})
        assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")

    opened = {"Cookie": "squall-web=main--paged-page", "Referer": f"{origin}/admin"}
    assert (await world.http.get("/models", headers=opened)).status_code == 307
    assert (await world.http.get("/v1/apps", headers=opened)).status_code == 200  # the token stays with the API

    browser = {"User-Agent": "Mozilla/5.0", "Accept": "text/html,*/*", "Authorization": ""}
    answer = await world.http.get("/web/main--paged-page?a=1", headers=browser)
    assert (answer.status_code, answer.headers["location"]) == (307, "/web/main--paged-page/?a=1")
    for path, headers in (("/web/main--paged-page/", browser), ("/web/main--paged-page", {"Authorization": ""})):
        assert (await world.http.get(path, headers=headers)).status_code == 401
    world.http.cookies.clear()  # whose page was opened last


# --- who waits ---


async def test_more_requests_than_may_wait_are_told_so(world: World) -> None:
    assert (await publish(world.http, "busy")).status_code == 200

    answers = await asyncio.gather(*(world.http.get("/web/main--busy-page/") for _ in range(3)))

    messages = sorted(error_of(answer)["message"] for answer in answers)
    assert [answer.status_code for answer in answers] == [503, 503, 503]
    assert all("retry-after" in answer.headers for answer in answers)
    assert [("already" in message) for message in messages].count(True) == 2, messages


async def test_who_has_left_waits_no_longer(world: World) -> None:
    _, client = await world.start_gateway(web_hold_s=60.0, web_max_held=1)
    assert (await publish(world.http, "left")).status_code == 200
    host, port = client.base_url.host, client.base_url.port
    _, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET /web/main--left-page/ HTTP/1.1\r\nHost: x\r\n\r\n")

    async def waits() -> bool:
        try:
            answer = await client.get("/web/main--left-page/", timeout=0.3)
        except httpx.ReadTimeout:
            return True
        assert "already" in error_of(answer)["message"]
        return False

    await eventually(lambda: refused(waits))
    writer.close()
    await eventually(waits)


async def refused(waits: Callable[[], Awaitable[bool]]) -> bool:
    return not await waits()


async def test_urls_make_only_so_many_sets_of_parameters(world: World) -> None:
    _, client = await world.start_gateway(web_hold_s=0.1, web_max_parameter_sets=2)
    methods = (MethodSpec("page", web=WebSpec("asgi")),)
    spec = a_function("Model", is_class=True, methods=methods, parameters=(ParameterSpec("x", "str"),))
    assert (await publish(client, "sets", functions=[to_wire(spec)])).status_code == 200
    answers = [await client.get("/web/main--sets-model-page/", params={"x": x}) for x in ("a", "b", "a", "c")]
    assert [answer.status_code for answer in answers] == [503, 503, 503, 429]
    assert "SQUALL_GATEWAY_WEB_MAX_PARAMETER_SETS" in error_of(answers[-1])["fix"]


async def test_of_two_apps_that_take_a_name_at_the_same_time_one_is_told(world: World) -> None:
    here, there = (NameClaims(world.bus, SystemClock()) for _ in range(2))
    apps = world.bus.kv("apps")
    mine, other = (
        AppRecord(
            app_id=f"ap-{name}", name=name, workspace="w", environment="main", state="deployed", version=1,
            functions={}, created_at=1.0, updated_at=1.0, web={"raced.example.com": "page"},
        )
        for name in ("mine", "other")
    )  # fmt: skip
    await here.claim(mine)
    with pytest.raises(ConflictError, match="being deployed"):
        await there.claim(other)
    revision = await apps.create(mine.app_id, mine.encode())
    with pytest.raises(ConflictError, match="belongs to"):
        await there.claim(other)
    await apps.update(mine.app_id, replace(mine, web={}).encode(), revision)
    await there.claim(other)  # given up


async def test_a_redirect_stays_on_its_host() -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"scheme": "http", "raw_path": b"//evil.example/x", "query_string": b"a=1&__squall_function_call_id=fc-0"}
    await send_away(scope, {b"host": b"good.example"}, send, "fc-1")
    location = dict(sent[0]["headers"])[b"location"]
    assert location == b"http://good.example//evil.example/x?a=1&__squall_function_call_id=fc-1"


# --- agents ---


async def test_an_agent_that_has_started_again_does_not_count_as_busy(tmp_path: Path) -> None:
    async with asyncio.timeout(20):
        door: Any = Door(AgentSettings(), SimpleNamespace(get=lambda pool: None), None, None)  # type: ignore[arg-type]
        opening = frames.encode(frames.Web.OPEN, {"type": "http"})
        async with door.listen(tmp_path):
            with pytest.raises(Busy):
                await Upstream.ask(door.address, {"pool": "p", "key": door.key}, opening)
            with pytest.raises(Unreachable):
                await Upstream.ask(door.address, {"pool": "p", "key": "of its last life"}, opening)


@asynccontextmanager
async def agents_that_die(folder: Path) -> AsyncIterator[tuple[Routes, Counter[str]]]:
    """Two machines whose agents end as soon as they have got a request; and how many each has got."""
    got: Counter[str] = Counter()

    async def die(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got[name] += bool(await reader.read(1 << 16))
        writer.close()

    claims = [SimpleNamespace(node=name, container=f"ta-{name}", state="ready") for name in ("one", "other")]
    fleet: Any = SimpleNamespace(claims_of=lambda pool: claims, verdicts={}, on_claims=None)
    bus: Any = SimpleNamespace(send=lambda *_: None, topology=SimpleNamespace(region="local"))
    routes = Routes(bus, fleet, SimpleNamespace(text=lambda pool: ""))  # type: ignore[arg-type]

    async def known(name: str) -> tuple[str, str]:
        return f"unix:{folder / name}", "key"

    routes._node = known  # type: ignore[method-assign]
    async with AsyncExitStack() as stack:
        for claim in claims:
            server = await asyncio.start_unix_server(partial(die, claim.node), str(folder / claim.node))
            await stack.enter_async_context(server)
        yield routes, got


@pytest.mark.parametrize("reads", [True, False])
async def test_a_request_that_a_container_may_have_is_repeated_only_if_it_reads(tmp_path: Path, reads: bool) -> None:
    wanted = Wanted(
        pool="p", ask={"pool": "p"}, first=b"", raw=False, repeatable=reads, hold_s=0.0, max_held=1, dev=False
    )
    async with asyncio.timeout(20), agents_that_die(tmp_path) as (routes, got):
        with pytest.raises(ResourceExhaustedError if reads else RequestLostError):
            await routes.open(wanted)
    assert got.total() == (2 if reads else 1)


async def test_a_request_that_an_agent_takes_at_the_end_of_its_time_is_not_refused(tmp_path: Path) -> None:
    """It is told either way what became of it: a refusal says that nobody has it."""
    hold_s, asked = 2.0, Counter[str]()

    async def agent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        asked["times"] += 1
        if asked["times"] == 1:
            writer.write(frames.encode(frames.Web.BUSY, {"reason": "full"}))
        else:
            await asyncio.sleep(hold_s)  # it waits for its container
            writer.write(frames.encode(frames.Web.GRANTED, {"container": "ta-one"}))
            await reader.read()
        writer.close()

    wanted = Wanted(
        pool="p", ask={"pool": "p"}, first=b"", raw=False, repeatable=False, hold_s=hold_s, max_held=1, dev=False
    )
    async with asyncio.timeout(60), agents_that_die(tmp_path) as (routes, _):
        routes._fleet.claims_of("p").pop()
        (tmp_path / "one").unlink()
        async with await asyncio.start_unix_server(agent, str(tmp_path / "one")):
            route = await routes.open(wanted)
            assert route.upstream.container == "ta-one"
            route.close()


async def test_an_agent_that_broke_is_asked_last_for_a_while(tmp_path: Path) -> None:
    wanted = Wanted(
        pool="p", ask={"pool": "p"}, first=b"", raw=False, repeatable=False, hold_s=0.0, max_held=1, dev=False
    )
    async with asyncio.timeout(60), agents_that_die(tmp_path) as (routes, got):
        for number in (1, 2):
            with pytest.raises(RequestLostError):
                await routes.open(wanted)
            assert got.total() == number
    assert set(got.values()) == {1}, "the second request must not go where the first was lost"


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
