"""From a web function to what answers: an ASGI app, or the port of a server that the function starts."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Any, Callable, Optional

from squall_runner.load import LoadError
from squall_runner.web.port import Port

FULL_PATHS_SINCE = (0, 35)
"""Of Starlette: what `path` is to it."""


async def build(function: Optional[Callable[..., Any]], declared: dict[str, Any], max_inputs: int) -> Any:
    """What answers the requests of this function. Raises what user code raises, and `LoadError`."""
    kind = declared["kind"]
    if kind == "server":
        port = Port(declared["port"], declared["startup_timeout_s"])
        return await (port.start(function) if function is not None else port.until_listening())
    assert function is not None
    if kind == "fastapi":
        return with_paths_it_reads(_fastapi(function, declared))
    app = function()
    if asyncio.iscoroutine(app):
        app = await app
    if not callable(app):
        name = getattr(function, "__name__", "it")
        raise LoadError(f"{name} must return {'an ASGI' if kind == 'asgi' else 'a WSGI'} app, it returned {app!r:.200}")
    if kind == "wsgi":
        from squall_runner.web.wsgi import WsgiApp

        return WsgiApp(app, max_inputs)
    return with_paths_it_reads(app)


def with_paths_it_reads(app: Callable[..., Any]) -> Callable[..., Any]:
    """The app itself; or around it what cuts `root_path` off `path`, where Starlette is from before ASGI said that the
    one begins with the other: it adds them up, and finds no route."""
    version = getattr(sys.modules.get("starlette"), "__version__", "")
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= FULL_PATHS_SINCE:
        return app

    async def cut(scope: dict[str, Any], receive: Any, send: Any) -> None:
        root = scope.get("root_path", "")
        if root and scope["path"].startswith(root):
            scope["path"] = scope["path"][len(root) :] or "/"
        await app(scope, receive, send)

    return cut


def _fastapi(function: Callable[..., Any], declared: dict[str, Any]) -> Any:
    try:
        from fastapi import FastAPI
        from fastapi.middleware.cors import CORSMiddleware
    except ImportError as error:
        raise LoadError(
            f"@squall.fastapi_endpoint needs FastAPI in the image ({error}): "
            'squall.Image.debian_slim().pip_install("fastapi[standard]")'
        ) from None
    docs: dict[str, Any] = {} if declared["docs"] else {"openapi_url": None, "docs_url": None, "redoc_url": None}
    app = FastAPI(title=getattr(function, "__name__", "endpoint"), **docs)
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])
    app.add_api_route("/", function, methods=[declared["method"]])
    return app
