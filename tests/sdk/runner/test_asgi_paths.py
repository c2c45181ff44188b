"""What `path` of a request is to an ASGI app, by the Starlette that it is made with."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from squall_runner.web import apps

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize(
    ("version", "path", "seen"),
    [
        ("0.27.0", "/web/a--b/items/1", "/items/1"),
        ("0.34.0", "/web/a--b", "/"),
        ("0.34.0", "/items/1", "/items/1"),
        ("0.35.0", "/web/a--b/items/1", "/web/a--b/items/1"),
        ("1.0.0rc1", "/web/a--b/", "/web/a--b/"),
        (None, "/web/a--b/", "/web/a--b/"),
    ],
)
async def test_a_starlette_of_old_gets_paths_without_the_prefix(
    monkeypatch: pytest.MonkeyPatch, version: str | None, path: str, seen: str
) -> None:
    monkeypatch.setitem(sys.modules, "starlette", version and SimpleNamespace(__version__=version))
    paths = []

    async def app(scope: dict[str, Any], _receive: Any, _send: Any) -> None:
        paths.append((scope["root_path"], scope["path"]))

    built = await apps.build(lambda: app, {"kind": "asgi"}, 1)
    root = "/web/a--b" if path.startswith("/web") else ""
    await built({"type": "http", "root_path": root, "path": path}, None, None)
    assert paths == [(root, seen)]
