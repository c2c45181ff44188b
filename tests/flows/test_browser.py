"""Web functions as a browser sees them: pages, a form, fetch of a stream, a WebSocket. Skipped without Chromium."""

from __future__ import annotations

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
from tests.support.platform import ROOT, Platform, eventually

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `apt-get install chromium`"),
]
EXAMPLES = ROOT / "examples"
PROGRAM = Path(__file__).parent / "programs" / "web.py"
EVENTS = """(async () => {
  const answer = await fetch("/web/main--web-echo/events")
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader()
  let text = ""
  while (!text.includes("data: 3")) text += (await reader.read()).value
  await reader.cancel()
  return text.split("\\n")[0] + " " + answer.headers.get("content-type")
})()"""
CHAT = """new Promise((resolve, reject) => {
  const socket = new WebSocket(URL)
  socket.onopen = () => socket.send("grüezi")
  socket.onmessage = (event) => { socket.close(1000); resolve(event.data) }
  socket.onerror = () => reject("no WebSocket")
})"""


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(prefix="squall-browser-", ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            try:
                told = Path(profile, "DevToolsActivePort")
                eventually(lambda: told.exists() and len(told.read_text().splitlines()) == 2, within_s=60)
                port = told.read_text().splitlines()[0]
                pages = httpx.get(f"http://127.0.0.1:{port}/json/list", timeout=60).json()
                (address,) = [page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"]
                with websockets.sync.client.connect(address, max_size=None) as connection:
                    yield Browser(connection)
            finally:
                child.terminate()


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform() as started:
        started.squall("deploy", PROGRAM)
        yield started


def test_a_page_its_form_a_stream_and_a_websocket(platform: Platform, browser: Browser) -> None:
    platform.squall("deploy", EXAMPLES / "web_page.py")
    platform.squall("deploy", EXAMPLES / "web_chat.py", timeout_s=120)

    browser.open(f"{platform.url}/web/main--page-page/")
    assert browser.run("document.title") == "Waves"
    assert browser.run("document.querySelector('polyline').points.length") == 101
    browser.run("waves = document.querySelector('input'); waves.value = 7; waves.onchange()")
    eventually(lambda: browser.run("location.search") == "?waves=7", within_s=60)
    eventually(lambda: browser.run("document.querySelector('input')?.value") == "7", within_s=60)

    port = platform.url.rpartition(":")[2]
    browser.open(f"http://main--page-page.localhost:{port}/?waves=2")  # a host of its own
    assert browser.run("document.querySelector('input').value") == "2"

    browser.open(f"{platform.url}/web/main--web-echo/")
    assert browser.run(EVENTS) == "data: 1 text/event-stream"
    address = platform.url.replace("http", "ws") + "/web/main--chat-chat/room"
    assert browser.run(CHAT.replace("URL", json.dumps(address))) == "grüezi"
