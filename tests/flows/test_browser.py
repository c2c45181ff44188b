"""Web functions as a browser sees them: pages, a form, fetch of a stream, a WebSocket. Skipped without Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.browser import Browser, needs_browser, open_browser
from tests.support.platform import ROOT, Platform, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), needs_browser]
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

GREETING = """new Promise((resolve, reject) => {
  const socket = new WebSocket(`ws://${location.host}/socket`)
  socket.onmessage = (event) => { socket.close(); resolve(event.data) }
  socket.onerror = () => reject("no WebSocket")
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


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


def test_a_site_whose_links_begin_with_a_slash_works_below_its_prefix(platform: Platform, browser: Browser) -> None:
    prefix = f"{platform.url}/web/main--web-site"
    browser.open(prefix)
    assert browser.run("script") == "ran"
    assert browser.run("relative") == "ran"
    told = browser.run("fetch('/api?x', {method: 'POST', body: 'x'.repeat(300000)}).then(answer => answer.json())")
    assert (told["method"], told["size"]) == ("POST", 300_000)
    assert "session=7" in told["cookie"]
    assert browser.run(GREETING) == "of the site"

    browser.run("document.querySelector('form').submit()")
    eventually(lambda: browser.run("location.href") == f"{prefix}/result/a=1", within_s=60)

    browser.run("history.pushState({}, '', '/room/1')")  # the page forgets its prefix
    told = browser.run("fetch('/api').then(answer => answer.json())")
    assert told["method"] == "GET"

    browser.open(f"{platform.url}/web/main--web-echo/")
    told = browser.run("fetch('/api').then(answer => answer.json())")
    assert told["path"] == "/api"
    assert "session=7" not in json.dumps(told["headers"]), "the other function's cookie"
