"""Web functions through the whole platform, with the clients that people use: curl, httpx, websockets, a raw socket."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
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
import websockets.sync.client
from tests.flows.conftest import use
from tests.support.platform import ROOT, Platform, eventually

import squall

pytestmark = pytest.mark.slow

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
    eventually(lambda: greeter(word="ciao").greet.get_current_stats().num_total_runners == 1)  # of its parameters
    # Defaults are left out: programs write `get_web_url() + "/path"`.
    assert "?" not in greeter().web.get_web_url()
    assert greeter(word="hello", times=3).web.get_web_url().endswith("?times=3")


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
    eventually(lambda: client.get("/web/main--web-echo").json()["left"] == before + 1, within_s=60)


def test_an_app_that_asks_whether_its_client_has_left_is_told_at_once(platform: Platform, client: httpx.Client) -> None:
    before = client.get("/web/main--web-echo").json()
    address = urlsplit(platform.url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=60) as connection:
        connection.sendall(b"GET /web/main--web-echo/polls HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: client.get("/web/main--web-echo").json()["polled"] == before["polled"] + 1, within_s=60)
    eventually(lambda: client.get("/web/main--web-echo").json()["left"] == before["left"] + 1, within_s=60)


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


def test_a_server_class_answers_once_it_listens_and_keeps_nobody_waiting(
    platform: Platform, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(platform, monkeypatch)
    url = squall.Server.from_name("web", "Listener").get_url()
    assert url is not None

    first = client.get(url)
    assert (first.status_code, first.json()["error"]["code"]) == (503, "no_container")
    assert first.headers["retry-after"]
    eventually(lambda: client.get(url + "/x").status_code == 202, within_s=20)

    with ThreadPoolExecutor(2) as two:
        answers = [each.result() for each in [two.submit(httpx.get, url + "/slow", timeout=60) for _ in range(2)]]
    assert sorted(answer.status_code for answer in answers) == [202, 429]


def test_a_client_that_cannot_wait_is_sent_to_fetch_the_answer_later(client: httpx.Client) -> None:
    headers = {"Prefer": "respond-async, wait=1"}
    answer = client.post("/web/main--web-echo/slow?2.5", headers=headers, content=b"x", follow_redirects=True)
    assert [each.status_code for each in answer.history] == [303, 303]
    assert (answer.status_code, answer.text, answer.request.method) == (200, "slow", "GET")

    gone = client.get(answer.url)  # an answer is given once
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")
    assert client.post(answer.url).status_code == 400


def test_a_request_has_a_trace_and_a_place_in_the_history(platform: Platform, client: httpx.Client) -> None:
    told = client.get("/web/main--web-echo/for%20history?secret=1").json()
    api = {"Authorization": f"Bearer {platform.token}"}

    def listed() -> list[dict[str, Any]]:
        calls = client.get("/v1/calls", params={"app": "web", "function": "echo"}, headers=api).json()["calls"]
        return [call for call in calls if call["call"] == told["call"]]

    eventually(lambda: listed() != [])
    (row,) = listed()
    assert (row["kind"], row["state"], row["function"]) == ("web", "succeeded", "echo")
    assert "for%20history 201" in platform.squall("app", "logs", "web").stdout
    assert "secret" not in platform.squall("app", "logs", "web").stdout

    trace = client.get(f"/v1/calls/{told['call']}/trace", headers=api).json()
    assert [span["name"] for span in trace["spans"]] == ["web.request", "web.wait", "web.answer"]
    assert headers_of(told)["traceparent"].split("-")[1] == trace["trace_id"]


def test_the_trace_of_a_client_goes_on_in_the_function(client: httpx.Client) -> None:
    theirs = f"00-{'ab' * 16}-{'cd' * 8}-01"
    seen = headers_of(client.get("/web/main--web-echo/", headers={"traceparent": theirs}).json())["traceparent"]
    assert seen.split("-")[1] == "ab" * 16
    assert seen != theirs  # a span of ours is between


def test_nobody_can_say_that_he_is_somebody_else(client: httpx.Client) -> None:
    headers = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https", "Forwarded": "for=6.6.6.6"}
    seen = headers_of(client.get("/web/main--web-echo/", headers=headers).json())
    assert (seen["x-forwarded-for"], seen["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert "forwarded" not in seen


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
        if scope["type"] == "websocket":
            await receive()
            await send({{"type": "websocket.accept"}})
            print("told", (await receive()).get("code"))
        if scope["type"] != "http":
            return
        await asyncio.sleep(0.05)
        await send({{"type": "http.response.start", "status": 200, "headers": []}})
        for _ in range(int(scope["query_string"] or b"0")):
            await send({{"type": "http.response.body", "body": b"a", "more_body": True}})
            await asyncio.sleep(0.1)
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

    url = f"{platform.url}/web/main--changes-web"
    with ThreadPoolExecutor(5) as pool, websockets.sync.client.connect(url.replace("http", "ws")) as socket_:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            eventually(lambda: (200, "1") in seen)
            long = pool.submit(httpx.get, f"{url}?40", timeout=60)
            program.write_text(VERSION.format(version=2))
            platform.squall("deploy", program)
            eventually(lambda: seen[-1] == (200, "2"))
            with pytest.raises(websockets.ConnectionClosed) as closed:
                socket_.recv(timeout=30)
        finally:
            stop.set()
        for each in asking:
            each.result()
        assert long.result().text == "a" * 40 + "1"
    assert set(seen) == {(200, "1"), (200, "2")}
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    eventually(lambda: "told 1012" in platform.squall("app", "logs", "changes").stdout)


@pytest.mark.parametrize("form", [{}, {"processes": True}], ids=["one-process", "processes"])
def test_a_platform_that_is_stopped_ends_no_request_that_runs_and_keeps_none_waiting(form: dict[str, Any]) -> None:
    with Platform(**form) as stopped, ThreadPoolExecutor(4) as pool:
        stopped.squall("deploy", PROGRAM)
        url = f"{stopped.url}/web/main--web-one-at-a-time"
        assert httpx.get(url, timeout=60).status_code == 201
        path, pid = f"{url}/slow?1.5", stopped.pid
        running, waiting = (pool.submit(httpx.get, path, timeout=60) for _ in range(2))
        api = {"Authorization": f"Bearer {stopped.token}"}

        def begun() -> bool:
            status = httpx.get(f"{stopped.url}/v1/apps/web/status", headers=api, timeout=60).json()
            return sum(each["running"] for each in status["pools"]) == 1

        eventually(begun, within_s=20)
        os.kill(pid, signal.SIGTERM)
        answers = [running.result(), waiting.result()]
        assert sorted(answer.status_code for answer in answers) in ([200, 200], [200, 503])
        assert all(answer.text == "slow" for answer in answers if answer.status_code == 200)


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


def test_example_of_a_server_of_its_own(platform: Platform, client: httpx.Client) -> None:
    platform.squall("deploy", EXAMPLES / "web_own_server.py")
    eventually(lambda: client.get("/web/main--own-server-files").status_code == 200, within_s=20)
    assert "Directory listing" in client.get("/web/main--own-server-files").text
    platform.squall("app", "stop", "own-server", "--yes")  # its port is the machine's


async def test_example_of_a_chat(platform: Platform) -> None:
    platform.squall("deploy", EXAMPLES / "web_chat.py", timeout_s=120)
    url = websocket_url(platform, "/web/main--chat-chat/room")
    async with websockets.connect(url) as one, websockets.connect(url) as other:
        await one.send("hello")
        assert (await one.recv(), await other.recv()) == ("hello", "hello")


def test_example_of_a_job_queue(platform: Platform, client: httpx.Client) -> None:
    platform.squall("deploy", EXAMPLES / "web_jobs.py", timeout_s=120)
    jobs = "/web/main--web-jobs-jobs/jobs"

    def submitted(**query: Any) -> str:
        answer = client.post(jobs, params=query)
        assert (answer.status_code, answer.json()["state"]) == (202, "accepted")
        return str(answer.headers["location"])

    def state(url: str) -> tuple[int, str]:
        answer = client.get(url)
        return answer.status_code, answer.json()["state"]

    quick, slow = submitted(words=3, seconds=0), submitted(words=3, seconds=300)
    eventually(lambda: state(quick) == (200, "done"))
    assert len(client.get(quick).json()["result"].split()) == 3
    assert state(slow) == (202, "running")
    assert client.delete(slow).status_code == 204
    eventually(lambda: state(slow) == (200, "cancelled"))
    assert state(f"{jobs}/nonsense") == (404, "unknown")
    broken = submitted(words=0)
    eventually(lambda: state(broken) == (200, "failed"))


def test_example_of_a_page(platform: Platform, client: httpx.Client) -> None:
    platform.squall("deploy", EXAMPLES / "web_page.py")
    answer = client.get("/web/main--page-page/", params={"waves": 5})
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "value=5" in answer.text
    assert "value=3" in client.get("/web/main--page-page/", params={"waves": "many"}).text


def test_example_of_a_server_in_another_language(platform: Platform, client: httpx.Client) -> None:
    platform.squall("deploy", EXAMPLES / "web_node.py")
    answer = client.post("/web/main--node-counter/", content="Üben, üben und ÜBEN".encode())
    assert answer.text == "data: üben 3\n\ndata: und 1\n\n"
    assert client.get("/web/main--node-counter/").status_code == 405


RERUN = b"\x5a\x00"
"""What a page of Streamlit says first, as protobuf: run the script, with no choices made yet."""


@pytest.mark.timeout(300)
def test_example_of_a_streamlit_page(platform: Platform, client: httpx.Client) -> None:
    platform.squall("deploy", EXAMPLES / "web_streamlit.py", timeout_s=240)
    assert client.get("/web/main--streamlit-page/_stcore/health").text == "ok"
    url = websocket_url(platform, "/web/main--streamlit-page/_stcore/stream")
    subprotocols, origin = [websockets.Subprotocol("streamlit")], websockets.Origin(platform.url)
    with websockets.sync.client.connect(url, subprotocols=subprotocols, origin=origin) as page:
        page.send(RERUN)
        messages = iter(lambda: page.recv(timeout=60), b"")
        assert any(b"0, 1, 4, 9, 16" in message for message in messages if isinstance(message, bytes))


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
    told = "WEBSOCKET /web/main--web-echo/refuse 403"
    eventually(lambda: told in platform.squall("app", "logs", "web").stdout, within_s=60)


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
        b"Host: y\r\n\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\nhello\n0\r\n\r\n",
        b"X-A : 1\r\n\r\n",
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


def test_what_is_said_about_one_connection_and_below_the_body_ends_at_the_gateway(platform: Platform) -> None:
    request = (
        b"POST /web/main--web-echo/a%2Fb/%C3%BC/..//x?q=%2F+a&b=%ZZ&&c HTTP/1.1\r\nHost: x\r\n"
        b"Connection: close, X-Mine, Content-Type\r\nX-Mine: 1\r\nContent-Type: text/plain\r\nTE: trailers\r\n"
        b"Proxy-Authorization: Basic abc\r\nTrailer: X-Late\r\nTransfer-Encoding: chunked\r\nX-Kept: 1\r\n\r\n"
        b"5;ext=1\r\nhello\r\n0\r\nX-Late: 1\r\nSquall-Key: 1\r\n\r\n"
    )
    head, _, body = raw(platform, request).partition(b"\r\n\r\n")
    told = json.loads(body)
    assert b" 201 " in head.splitlines()[0]
    assert (told["path"], told["query"], told["size"]) == ("/a/b/ü/..//x", "q=%2F+a&b=%ZZ&&c", 5)
    names = set(headers_of(told)) - {"x-forwarded-for", "x-forwarded-proto", "traceparent"}
    assert names == {"host", "content-type", "x-kept"}


def test_answers_are_framed_as_their_client_understands_it(platform: Platform, client: httpx.Client) -> None:
    old = raw(platform, b"GET /web/main--web-echo/stream?10 HTTP/1.0\r\n\r\n")
    assert b"chunked" not in old
    assert old.endswith(b"\r\n\r\n" + b"x" * 10)
    expected = raw(
        platform,
        b"POST /web/main--web-echo/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n"
        b"Content-Length: 5\r\n\r\nhello",
    )
    assert expected.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 ")
    upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQ"}
    assert client.get("/web/main--web-echo/", headers=upgrade).status_code == 201
    assert client.head("/web/main--web-echo/stream?100").content == b""

    unchanged = client.get("/web/main--web-echo/answer?304")  # with the length that the page would have
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", '"1"')
    assert unchanged.headers.get_list("set-cookie") == ["a=1; Path=/web/main--web-echo", "b=2; HttpOnly"]
    assert client.get("/web/main--web-echo/answer?299").status_code == 299
    packed = client.get("/web/main--web-echo/answer?203")
    assert (packed.headers["content-encoding"], packed.text) == ("gzip", "packed")


def test_too_many_headers_are_refused(platform: Platform) -> None:
    assert raw(platform, b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 431 ")
    assert raw(platform, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400 ")
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
