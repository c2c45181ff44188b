"""Web functions through the whole platform, with the clients that people use: curl, httpx, websockets, a raw socket."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import websockets
from tests.flows.conftest import use
from tests.support.platform import ROOT, Platform, eventually

import squall

PROGRAM = Path(__file__).parent / "programs" / "web.py"


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform() as started:
        started.squall("deploy", PROGRAM)
        yield started


@pytest.fixture
def client(platform: Platform) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=platform.url, timeout=60) as made:
        yield made


def headers_of(told: dict[str, Any]) -> dict[str, str]:
    return dict(told["headers"])


# --- addresses ---


def test_a_function_answers_below_the_path_that_get_web_url_tells(
    platform: Platform, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(platform, monkeypatch)
    url = squall.Function.from_name("web", "echo").get_web_url()
    assert url is not None

    answer = client.post(url + "/a/b%20c", params={"x": "1 2"}, content=b"12345", headers={b"X-Mine": "ü".encode()})

    told = answer.json()
    assert answer.status_code == 201
    assert (told["method"], told["path"], told["query"], told["size"]) == ("POST", "/a/b c", "x=1+2", 5)
    assert headers_of(told)["x-mine"] == "ü".encode().decode("latin-1")
    assert told["url"] == url
    assert told["call"].startswith("fc-")


def test_a_function_answers_on_a_host_of_its_own(platform: Platform, client: httpx.Client) -> None:
    answer = client.get("/x", headers={"Host": "main--web-echo.localhost"})
    assert answer.json()["path"] == "/x"


def test_curl_finds_the_host(platform: Platform) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    port = urlsplit(platform.url).port
    printed = subprocess.run(
        [curl, "-sS", "-m", "60", f"http://main--web-echo.localhost:{port}/from/curl"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert json.loads(printed)["path"] == "/from/curl"


def test_names_that_are_nobodys_are_not_found(client: httpx.Client) -> None:
    for path, host in (("/web/main--web-nothing/", ""), ("/web/..%2f..%2fv1/info", ""), ("/", "main--no.localhost")):
        answer = client.get(path, headers={"Host": host} if host else {})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path


def test_web_functions_cannot_be_called(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    use(platform, monkeypatch)
    with pytest.raises(squall.exception.InvalidError, match="web function"):
        squall.Function.from_name("web", "echo").remote()


def test_class_parameters_come_from_the_query(
    platform: Platform, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(platform, monkeypatch)
    greeter = squall.Cls.from_name("web", "Greeter")
    url = greeter(word="ciao", times=2).web.get_web_url()

    told = client.get(url).json()

    assert (told["word"], told["times"], told["ready"]) == ("ciao", 2, True)
    assert client.get(url.partition("?")[0]).json()["word"] == "hello"
    assert client.get(url.partition("?")[0] + "?times=many").status_code == 400
    assert greeter(word="ciao").greet.remote("you") == "ciao you"


def test_an_app_that_is_run_has_an_address_with_dev(platform: Platform, client: httpx.Client, tmp_path: Path) -> None:
    program = tmp_path / "runs.py"
    program.write_text(
        "import urllib.request, squall\n"
        "app = squall.App('runs')\n"
        "@app.function()\n"
        "@squall.wsgi_app()\n"
        "def page():\n"
        "    def application(environ, start_response):\n"
        "        start_response('200 OK', [])\n"
        "        return [b'ran']\n"
        "    return application\n"
        "@app.local_entrypoint()\n"
        "def main():\n"
        "    url = page.get_web_url()\n"
        "    print(url, urllib.request.urlopen(url).read())\n"
    )
    printed = platform.squall("run", program)
    assert "main--runs-page-dev b'ran'" in printed.stdout


# --- HTTP ---


def test_lifespan_starts_before_the_first_request_and_gives_its_state(client: httpx.Client) -> None:
    told = client.get("/web/main--web-echo").json()
    assert (told["lifespan"], told["state"]) == ("started", "at startup")


def test_large_bodies_go_up_and_down_in_pieces(client: httpx.Client) -> None:
    size = 32 << 20
    pieces = (b"y" * (1 << 20) for _ in range(32))
    assert client.post("/web/main--web-echo/", content=pieces).json()["size"] == size
    with client.stream("GET", f"/web/main--web-echo/stream?{size}") as answer:
        assert sum(len(piece) for piece in answer.iter_raw()) == size


def test_an_event_stream_arrives_as_it_is_sent_and_the_app_hears_that_its_reader_left(client: httpx.Client) -> None:
    before = client.get("/web/main--web-echo").json()["left"]
    with client.stream("GET", "/web/main--web-echo/events") as answer:
        lines = answer.iter_lines()
        assert [next(lines), next(lines), next(lines)] == ["data: 1", "", "data: 2"]
    eventually(lambda: client.get("/web/main--web-echo").json()["left"] == before + 1)


def test_a_wsgi_app_answers(client: httpx.Client) -> None:
    answer = client.put("/web/main--web-wsgi/some/path", content=b"1234567")
    assert (answer.text, answer.headers["x-path"]) == ("/web/main--web-wsgi 7", "/some/path")


def test_a_server_on_a_port_of_its_own_gets_the_requests(client: httpx.Client) -> None:
    answer = client.get("/web/main--web-server/a%20b", params={"x": "1"})
    assert (answer.status_code, answer.text) == (202, "/a%20b?x=1 /web/main--web-server")
    head = client.head("/web/main--web-server/a")
    assert (head.status_code, head.headers["content-length"], head.content) == (202, "24", b"")
    assert client.post("/web/main--web-server/", content=b"1234567").text == "size 7"
    assert client.post("/web/main--web-server/", content=(b"y" * 100_000 for _ in range(50))).text == "size 5000000"


def test_an_app_that_raises_is_a_500_with_a_request_id(client: httpx.Client) -> None:
    answer = client.get("/web/main--web-echo/raise")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "web_function")
    assert answer.headers["x-request-id"]


def test_a_container_that_is_killed_in_the_middle_of_an_answer_does_not_look_like_a_whole_one(
    client: httpx.Client,
) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/web/main--fragile/die")
    assert client.get("/web/main--fragile/").status_code == 201  # another container


def test_requests_beyond_the_slots_wait_for_their_turn(platform: Platform) -> None:
    async def ask_all() -> list[str]:
        async with httpx.AsyncClient(base_url=platform.url, timeout=60) as client:
            answers = await asyncio.gather(*(client.get("/web/main--web-one-at-a-time/slow?0.05") for _ in range(8)))
            return [answer.text for answer in answers]

    assert asyncio.run(ask_all()) == ["slow"] * 8


def test_a_request_that_takes_longer_than_the_timeout_is_a_504(client: httpx.Client) -> None:
    answer = client.get("/web/main--web-one-at-a-time/slow?60")
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "function_timeout")
    assert client.get("/web/main--web-one-at-a-time/").status_code == 201  # its slot is free again


VERSION = """
import asyncio, squall
app = squall.App("changes")

@app.function()
@squall.concurrent(max_inputs=20)
@squall.asgi_app()
def web():
    async def asgi(scope, receive, send):
        if scope["type"] != "http":
            return
        await asyncio.sleep(0.05)
        await send({{"type": "http.response.start", "status": 200, "headers": []}})
        await send({{"type": "http.response.body", "body": b"{version}"}})
    return asgi
"""


def test_a_deploy_under_load_fails_no_request(platform: Platform, tmp_path: Path) -> None:
    program, seen, stop = tmp_path / "changes.py", [], threading.Event()
    program.write_text(VERSION.format(version=1))
    platform.squall("deploy", program)

    def ask() -> None:
        with httpx.Client(base_url=platform.url, timeout=60) as client:
            while not stop.is_set():
                answer = client.get("/web/main--changes-web")
                seen.append((answer.status_code, answer.text))

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            eventually(lambda: (200, "1") in seen)
            program.write_text(VERSION.format(version=2))
            platform.squall("deploy", program)
            eventually(lambda: seen[-1] == (200, "2"))
        finally:
            stop.set()
        for each in asking:
            each.result()
    assert set(seen) == {(200, "1"), (200, "2")}


# --- examples ---


EXAMPLES = ROOT / "examples"


def test_example_of_an_api(platform: Platform, client: httpx.Client) -> None:
    told = platform.squall("deploy", EXAMPLES / "web_api.py", timeout_s=120)
    assert "main--web-api-tokens" in told.stdout + told.stderr
    answer = client.get("/web/main--web-api-api/score", params={"text": "a great day"})
    assert answer.json() == {"text": "a great day", "score": 2}
    assert client.get("/web/main--web-api-api/score").status_code == 422

    made = json.loads(platform.squall("token", "proxy", "create", "--json").stdout)
    headers = {"Squall-Key": made["key"], "Squall-Secret": made["secret"], "Origin": "https://elsewhere.example"}
    streamed = client.get("/web/main--web-api-tokens", params={"prompt": "hi", "n": 2}, headers=headers)
    assert streamed.text == "data: hi 0\n\ndata: hi 1\n\n"
    assert streamed.headers["access-control-allow-origin"] == "*"
    assert client.get("/web/main--web-api-tokens/docs", headers=headers).status_code == 200
    assert client.post("/web/main--web-api-tokens", headers=headers).status_code == 405


def test_example_of_a_guestbook(platform: Platform, client: httpx.Client) -> None:
    platform.squall("deploy", EXAMPLES / "web_guestbook.py")
    signed = client.post("/web/main--guestbook-page", data={"guest": "<Ada>"}, follow_redirects=True)
    assert "<li>&lt;Ada&gt;" in signed.text


async def test_example_of_a_chat(platform: Platform) -> None:
    platform.squall("deploy", EXAMPLES / "web_chat.py", timeout_s=120)
    url = websocket_url(platform, "/web/main--chat-chat/room")
    async with websockets.connect(url) as one, websockets.connect(url) as other:
        await one.send("hello")
        assert (await one.recv(), await other.recv()) == ("hello", "hello")


# --- WebSockets ---


def websocket_url(platform: Platform, path: str) -> str:
    return platform.url.replace("http", "ws", 1) + path


async def test_a_websocket_carries_messages_both_ways(platform: Platform) -> None:
    url = websocket_url(platform, "/web/main--web-echo/chat")
    async with websockets.connect(url, subprotocols=[websockets.Subprotocol("mine")]) as socket_:
        assert socket_.subprotocol == "mine"
        for message in ("text", b"\x00\xff", "ü" * 100_000, b"z" * (1 << 20)):
            await socket_.send(message)
            assert await socket_.recv() == message
        await socket_.send("close")
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await socket_.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (3001, "asked to")


async def test_websockets_that_are_not_taken_are_refused_with_a_status(platform: Platform) -> None:
    for path, status in (("/web/main--web-echo/refuse", 403), ("/web/main--no/", 404), ("/v1/info", 404)):
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(websocket_url(platform, path))
        assert refused.value.response.status_code == status, path


async def test_a_message_that_is_too_large_closes_the_websocket(platform: Platform) -> None:
    async with websockets.connect(websocket_url(platform, "/web/main--web-echo/")) as socket_:
        await socket_.send(b"x" * (3 << 20))
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await socket_.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


# --- bad input ---


def raw(platform: Platform, request: bytes) -> bytes:
    address = urlsplit(platform.url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=30) as connection:
        connection.sendall(request)
        found = b""
        while data := connection.recv(65536):
            found += data
        return found


@pytest.mark.parametrize(
    "smuggled",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"Content-Length: +5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        b"X-Folded: a\r\n b\r\n\r\n",
    ],
)
def test_requests_that_two_parsers_could_read_differently_are_refused(platform: Platform, smuggled: bytes) -> None:
    answer = raw(platform, b"POST /web/main--web-echo/ HTTP/1.1\r\nHost: x\r\n" + smuggled)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_body_that_is_announced_as_too_large_is_refused_before_it_is_read(platform: Platform) -> None:
    request = (
        b"POST /web/main--web-echo/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5000000000\r\n\r\n"
    )
    assert raw(platform, request).startswith(b"HTTP/1.1 413 ")


def test_too_many_headers_are_refused(platform: Platform) -> None:
    head = b"GET /web/main--web-echo/ HTTP/1.1\r\nHost: x\r\n"
    assert raw(platform, head + b"A: b\r\n" * 200 + b"\r\n").startswith(b"HTTP/1.1 431 ")
    assert raw(platform, head + b"A: " + b"b" * 70_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 431 ")


def test_a_protected_function_asks_for_a_token_and_starts_nothing(platform: Platform, client: httpx.Client) -> None:
    for headers in ({}, {"Modal-Key": "a", "Modal-Secret": "b"}, {"Authorization": f"Bearer {platform.token}"}):
        answer = client.get("/web/main--web-protected/", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "proxy_auth")
    assert "protected" not in platform.squall("container", "list").stdout


def test_a_proxy_token_opens_a_protected_function_and_nothing_else(platform: Platform, client: httpx.Client) -> None:
    made = json.loads(platform.squall("token", "proxy", "create", "shop", "--json").stdout)
    key, secret = made["key"], made["secret"]
    for headers in (
        {"Modal-Key": key, "Modal-Secret": secret},
        {"Squall-Key": key, "Squall-Secret": secret},
        {"Authorization": f"Bearer {key}.{secret}"},
    ):
        answer = client.get("/web/main--web-protected/", headers=headers)
        assert answer.status_code == 201
        assert not {"squall-secret", "modal-secret"} & set(headers_of(answer.json()))
    assert client.get("/v1/apps", headers={"Authorization": f"Bearer {made['token']}"}).status_code == 403
    platform.squall("token", "revoke", made["id"])
