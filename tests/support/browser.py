"""A headless Chromium with one tab."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets.sync.client
from tests.support.platform import eventually

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `apt-get install chromium`")
STARTS_WITHIN_S = 60


class Browser:
    """One tab, driven by the DevTools protocol."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)

    def _ask(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while (answer := json.loads(self._connection.recv(timeout=60))).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, url: str) -> None:
        self._ask("Page.navigate", url=url)
        eventually(lambda: self.run("document.readyState") == "complete", within_s=60)

    def run(self, expression: str) -> Any:
        """The value of JavaScript in the page; of a promise, what it becomes."""
        answer = self._ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Ends it, and removes its profile, when the block is left."""
    with tempfile.TemporaryDirectory(prefix="squall-browser-", ignore_cleanup_errors=True) as profile:
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            try:
                told = Path(profile, "DevToolsActivePort")
                eventually(lambda: told.exists() and len(told.read_text().splitlines()) == 2, within_s=STARTS_WITHIN_S)
                port = told.read_text().splitlines()[0]
                pages = httpx.get(f"http://127.0.0.1:{port}/json/list", timeout=STARTS_WITHIN_S).json()
                (address,) = [page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"]
                with websockets.sync.client.connect(address, max_size=None) as connection:
                    yield Browser(connection)
            finally:
                child.terminate()
