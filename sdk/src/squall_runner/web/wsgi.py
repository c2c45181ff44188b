"""A WSGI app as an ASGI app: each request runs in a thread, bodies go through the loop piece by piece."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from typing import Any, Callable, Optional

from squall_runner.threads import Threads

MAX_LINE_BYTES = 1 << 20


class WsgiApp:
    """Called like an ASGI app."""

    def __init__(self, app: Callable[..., Any], threads: int) -> None:
        self._app = app
        self._threads = Threads()
        self._several = threads > 1

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000, "reason": "a WSGI app has no WebSockets"})
            return
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        request = _Request(self._app, scope, receive, send, loop)
        within = contextvars.copy_context()

        def run() -> None:
            error: Optional[BaseException] = None
            try:
                within.run(request.run, self._several)
            except BaseException as raised:  # noqa: BLE001  # it is raised again where the request is waited for
                error = raised
            loop.call_soon_threadsafe(_settle, done, error)

        self._threads.call(run)
        await done


def _settle(done: asyncio.Future[None], error: Optional[BaseException]) -> None:
    if done.done():
        return
    if error is not None:
        done.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
    else:
        done.set_result(None)


class _Request:
    """One request, in its thread."""

    def __init__(
        self, app: Callable[..., Any], scope: dict[str, Any], receive: Any, send: Any, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._app, self._scope, self._receive, self._send, self._loop = app, scope, receive, send, loop
        self._head: Optional[dict[str, Any]] = None
        self._sent = False

    def run(self, several: bool) -> None:
        environ = environ_of(self._scope, Body(lambda: self._wait(self._receive())), several)
        parts = self._app(environ, self._start_response)
        try:
            for part in parts:
                if part:
                    self._write(part)
            self._write(b"", last=True)
        finally:
            close = getattr(parts, "close", None)
            if close is not None:
                close()

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _start_response(self, status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
        if exc_info is not None and self._sent:
            raise exc_info[1].with_traceback(exc_info[2])
        if self._head is not None and exc_info is None:
            raise AssertionError("start_response was called twice")
        pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        self._head = {"type": "http.response.start", "status": int(status[:3]), "headers": pairs}
        return self._write

    def _write(self, data: bytes, last: bool = False) -> None:
        if self._head is None:
            raise AssertionError("the app gave a body before it called start_response")
        if not self._sent:
            self._sent = True
            self._wait(self._send(self._head))
        self._wait(self._send({"type": "http.response.body", "body": data, "more_body": not last}))


def environ_of(scope: dict[str, Any], body: Body, several: bool) -> dict[str, Any]:
    """PEP 3333's environ."""
    root, path = scope.get("root_path", ""), scope["path"]
    server = scope.get("server") or ("localhost", 80)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": root.encode("utf-8").decode("latin-1"),
        "PATH_INFO": (path[len(root) :] if path.startswith(root) else path).encode("utf-8").decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": (scope.get("client") or ("", 0))[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": several,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in scope["headers"]:
        if b"_" in name:  # `X_User` would be taken for the `X-User` that somebody's proxy sets, or checks
            continue
        key = name.decode("latin-1").upper().replace("-", "_")
        key = key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
        text = value.decode("latin-1")
        environ[key] = f"{environ[key]},{text}" if key in environ else text
    return environ


class Body:
    """`wsgi.input`: reads the body as it comes, and keeps no more than was asked for."""

    def __init__(self, receive: Callable[[], dict[str, Any]]) -> None:
        self._receive = receive
        self._rest = bytearray()
        self._complete = False

    def _more(self) -> bool:
        if self._complete:
            return False
        message = self._receive()
        if message["type"] != "http.request":
            raise OSError("the client is gone")
        self._complete = not message.get("more_body", False)
        self._rest += message.get("body", b"")
        return True

    def read(self, size: Optional[int] = -1) -> bytes:
        """So many bytes, or all."""
        wanted = -1 if size is None else size
        while (wanted < 0 or len(self._rest) < wanted) and self._more():
            pass
        return self._cut(len(self._rest) if wanted < 0 else wanted)

    def readline(self, size: Optional[int] = -1) -> bytes:
        """To the next line break."""
        limit = MAX_LINE_BYTES if size is None or size < 0 else size
        while b"\n" not in self._rest and len(self._rest) < limit and self._more():
            pass
        end = self._rest.find(b"\n") + 1
        return self._cut(min(end or len(self._rest), limit))

    def readlines(self, hint: Optional[int] = -1) -> list[bytes]:
        """All lines."""
        return list(self)

    def __iter__(self) -> Any:
        while line := self.readline():
            yield line

    def _cut(self, size: int) -> bytes:
        taken = bytes(self._rest[:size])
        del self._rest[:size]
        return taken
