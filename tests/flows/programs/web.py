"""Web functions for tests: what clients send comes back in the answer, so that a test sees what the app saw."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import subprocess
import sys
from typing import Any

import squall

app = squall.App("web")


class Echo:
    """An ASGI app that tells what it got."""

    def __init__(self, **more: Any) -> None:
        self.more = more
        self.lifespan = "none"
        self.left = self.polled = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        await getattr(self, "on_" + scope["type"])(scope, receive, send)

    async def on_lifespan(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        self.lifespan = "started"
        scope["state"]["made"] = "at startup"
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("lifespan stopped", flush=True)
        await send({"type": "lifespan.shutdown.complete"})

    async def on_http(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope["path"][len(scope["root_path"]) :]
        if path.startswith(("/stream", "/die", "/slow", "/raise", "/events", "/answer", "/polls")):
            await getattr(self, path[1:])(scope, receive, send)
            return
        size, message = 0, {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            size += len(message.get("body", b""))
        told = {
            "method": scope["method"],
            "path": path,
            "query": scope["query_string"].decode(),
            "headers": [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]],
            "size": size,
            "pid": os.getpid(),
            "lifespan": self.lifespan,
            "state": scope["state"].get("made"),
            "left": self.left,
            "polled": self.polled,
            "call": squall.current_function_call_id(),
            **self.more,
        }
        await answer(send, 201, json.dumps(told).encode(), [(b"content-type", b"application/json")])

    async def stream(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """As many bytes as the query says, in pieces, without a length; a line for each piece of the request."""
        size = int(scope["query_string"] or b"0")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-kind", b"stream")]})
        piece = b"x" * min(size, 1 << 18)
        for _ in range(size // len(piece) if piece else 0):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def events(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Server-sent events until the client has left."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})

        async def until_left() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.left += 1

        leaving = asyncio.get_running_loop().create_task(until_left())
        number = 0
        while not leaving.done():
            number += 1
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
            await asyncio.wait([leaving], timeout=0.02)

    async def polls(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Asks from time to time whether its client is there still, as Starlette's `is_disconnected` does: at once."""
        await receive()
        self.polled += 1
        while (message := at_once(receive())) is None:  # noqa: ASYNC110 - that is what such an app does
            await asyncio.sleep(0.02)
        self.left += message["type"] == "http.disconnect"

    async def die(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """The process ends in the middle of its answer."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a part", "more_body": True})
        await asyncio.sleep(0.1)
        os.kill(os.getpid(), 9)

    async def answer(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """With the status that the query says; packed, but for the one that has no body."""
        status, packed = int(scope["query_string"]), gzip.compress(b"packed")
        cookies = [(b"set-cookie", b"a=1; Path=/"), (b"set-cookie", b"b=2; HttpOnly")]
        about = [(b"content-encoding", b"gzip"), (b"content-length", str(len(packed)).encode()), (b"etag", b'"1"')]
        await send({"type": "http.response.start", "status": status, "headers": [*cookies, *about]})
        await send({"type": "http.response.body", "body": b"" if status == 304 else packed})

    async def slow(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answers after the seconds that the query says."""
        await asyncio.sleep(float(scope["query_string"]))
        await answer(send, 200, b"slow")

    async def raise_(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        raise ValueError("of the app")

    locals()["raise"] = raise_

    async def on_websocket(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        if scope["path"].endswith("/refuse"):
            await send({"type": "websocket.close", "code": 1000})
            return
        subprotocol = scope["subprotocols"][0] if scope["subprotocols"] else None
        await send({"type": "websocket.accept", "subprotocol": subprotocol})
        while (message := await receive())["type"] == "websocket.receive":
            text, data = message.get("text"), message.get("bytes")
            if text == "close":
                await send({"type": "websocket.close", "code": 3001, "reason": "asked to"})
            elif text is not None:
                await send({"type": "websocket.send", "text": text})
            else:
                await send({"type": "websocket.send", "bytes": data})
        self.left += 1


def at_once(asked: Any) -> Any:
    """What it returns without waiting; None if it would wait."""
    try:
        asked.send(None)
    except StopIteration as returned:
        return returned.value
    asked.close()
    return None


async def answer(send: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*(headers or []), length]})
    await send({"type": "http.response.body", "body": body})


@app.function(timeout=20)
@squall.concurrent(max_inputs=50)
@squall.asgi_app()
def echo() -> Echo:
    return Echo(url=echo.get_web_url())


PAGE = b"""<!doctype html><title>form</title>
<script src="/static/script.js"></script><script src="static/script.js?relative"></script>
<form action="/submit" method="post"><input name="a" value="1"></form>"""


async def pages(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """A site that believes it is at `/`: its links, its redirect and its cookie."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "of the site"})
        await receive()
        return
    body, message = b"", {"more_body": True}
    while message["more_body"]:
        message = await receive()
        body += message["body"]
    asked = dict(scope["headers"])
    path = scope["path"][len(scope["root_path"]) :]
    if path == "/submit":
        await answer(send, 303, b"", [(b"location", b"/result/" + body)])
    elif path == "/static/script.js":
        name = scope["query_string"] or b"script"
        await answer(send, 200, name + b" = 'ran'", [(b"content-type", b"text/javascript")])
    elif path == "/api":
        told = {"method": scope["method"], "size": len(body), "cookie": asked.get(b"cookie", b"").decode()}
        await answer(send, 200, json.dumps(told).encode())
    elif path.startswith("/result/"):
        await answer(send, 200, b"<!doctype html><title>result</title>", [(b"content-type", b"text/html")])
    else:
        cookie = (b"set-cookie", b"session=7; Path=/; HttpOnly")
        await answer(send, 200 if path == "/" else 404, PAGE, [(b"content-type", b"text/html"), cookie])


@app.function()
@squall.concurrent(max_inputs=20)
@squall.asgi_app()
def site() -> Any:
    return pages


@app.function()
@squall.asgi_app(label="fragile")
def dies() -> Echo:
    return Echo()


@app.function(max_containers=1, timeout=2)
@squall.asgi_app()
def one_at_a_time() -> Echo:
    return Echo()


@app.function()
@squall.asgi_app(requires_proxy_auth=True)
def protected() -> Echo:
    return Echo()


@app.function()
@squall.wsgi_app()
def wsgi() -> Any:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Path", environ["PATH_INFO"])])
        yield environ["SCRIPT_NAME"].encode() + b" "
        yield str(len(body)).encode()

    return application


SERVER = """
import http.server, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path.startswith("/slow"):
            time.sleep(1)
        body = f"{self.path} {self.headers['X-Forwarded-Prefix']}".encode()
        self.send_response(202)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_HEAD = do_GET
    def do_POST(self):
        size = int(self.headers.get("Content-Length") or 0)
        while self.headers.get("Transfer-Encoding") and (n := int(self.rfile.readline(), 16)):
            size += len(self.rfile.read(n)); self.rfile.readline()
        self.rfile.read(size if not self.headers.get("Transfer-Encoding") else 0)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\\r\\nsize \\r\\n%x\\r\\n%d\\r\\n0\\r\\n\\r\\n" % (len(str(size)), size))
http.server.ThreadingHTTPServer(("0.0.0.0", 18753), Handler).serve_forever()
"""


@app.function(max_containers=1)
@squall.concurrent(max_inputs=20)
@squall.web_server(18753, startup_timeout=30)
def server() -> None:
    subprocess.Popen([sys.executable, "-c", SERVER])


@app.server(port=18754, max_concurrency=1, unauthenticated=True)
class Listener:
    """A server that an enter hook starts."""

    @squall.enter()
    def start(self) -> None:
        self.child = subprocess.Popen([sys.executable, "-c", SERVER.replace("18753", "18754")])

    @squall.exit()
    def stop(self) -> None:
        self.child.kill()


@app.cls()
class Greeter:
    """A class with a parameter, a hook, a web method and a plain one."""

    word: str = squall.parameter(default="hello")
    times: int = squall.parameter(default=1)

    @squall.enter()
    def prepare(self) -> None:
        self.ready = True

    @squall.asgi_app()
    def web(self) -> Echo:
        return Echo(word=self.word, times=self.times, ready=self.ready)

    @squall.method()
    def greet(self, name: str) -> str:
        return f"{self.word} {name}"
