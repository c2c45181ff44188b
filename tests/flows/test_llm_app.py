"""`examples/llm_app.py` as its reader uses it: trained, evaluated, called by curl, deployed again under load."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tests.flows.conftest import nothing_was_forbidden, use
from tests.support.browser import needs_browser, open_browser
from tests.support.platform import ROOT, Platform, eventually

import squall

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

PROGRAM = ROOT / "examples" / "llm_app.py"
LETTERS = re.compile(r"[a-z .,]{80}")
CALLERS = 3


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(processes=True, agents=2, gateways=2) as started:
        started.squall("secret", "create", "llm-settings", "TEMPERATURE=0.8")
        started.squall("deploy", PROGRAM, timeout_s=110)
        yield started
        nothing_was_forbidden(started)


@pytest.fixture(scope="module")
def token(platform: Platform) -> str:
    """Key and secret, as a bearer's."""
    made = json.loads(platform.squall("token", "proxy", "create", "--json").stdout)
    return f"{made['key']}.{made['secret']}"


def test_it_learns_is_evaluated_and_writes(platform: Platform) -> None:
    first, second = (platform.squall("run", PROGRAM, "--steps", 100, timeout_s=110).stdout for _ in range(2))

    said = [re.search(r"1000 prompts, ([\d.]+) bits", told) for told in (first, second)]
    assert all(said), first + second
    bits = [float(each.group(1)) for each in said if each is not None]
    assert bits[1] < bits[0] < 4.9, "it goes on from the weights that are in the volume"
    assert LETTERS.fullmatch(first.splitlines()[-1].removeprefix("the "))


def test_the_stream_is_behind_a_token_and_the_page_names_it(
    platform: Platform, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(platform, monkeypatch)
    squall.Function.from_name("llm", "refresh").remote(20)
    url = squall.Function.from_name("llm", "api").get_web_url()
    assert url is not None

    assert httpx.get(f"{url}/stream", timeout=60).status_code == 401
    command = ["curl", "-sN", "--fail", "-H", f"Authorization: Bearer {token}", f"{url}/stream?prompt=the%20"]
    assert LETTERS.fullmatch(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    page = squall.Function.from_name("llm", "page").get_web_url()
    named = re.search(r'fetch\("([^"?]*/stream)', httpx.get(f"{page}/", timeout=60).text)
    assert named is not None
    assert httpx.get(named[1], headers={"Authorization": f"Bearer {token}"}, timeout=60).status_code == 200, named[1]


@needs_browser
def test_the_page_writes_in_a_browser(platform: Platform, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(platform, monkeypatch)
    squall.Function.from_name("llm", "refresh").remote(20)
    page = squall.Function.from_name("llm", "page").get_web_url()

    with open_browser() as browser:
        browser.open(f"{page}/")
        browser.run("document.querySelector('form').requestSubmit()")
        eventually(lambda: browser.run("text.textContent").startswith("401"), within_s=60)
        browser.run(f"token.value = {json.dumps(token)}; document.querySelector('form').requestSubmit()")
        eventually(lambda: LETTERS.fullmatch(browser.run("text.textContent").removeprefix("the ")), within_s=60)


def test_it_is_deployed_again_under_load_without_a_failed_request(
    platform: Platform, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(platform, monkeypatch)
    squall.Function.from_name("llm", "refresh").remote(20)
    url = squall.Function.from_name("llm", "api").get_web_url()
    changed = tmp_path / "llm_app.py"
    changed.write_text(PROGRAM.read_text().replace('{"bits": await', '{"twice": 2 * await'))
    stop, answered = threading.Event(), [0]

    def ask(number: int) -> list[str]:
        failures = []
        with httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
            while not stop.is_set():
                answer = client.get(f"{url}/bits", params={"text": f"the river {number}"[:9]})
                answered[0] += 1
                if answer.status_code != 200 or not answer.json().keys() & {"bits", "twice"}:
                    failures.append(f"{answer.status_code} {answer.text[:200]}")
        return failures

    with ThreadPoolExecutor(CALLERS) as threads:
        asking = [threads.submit(ask, number) for number in range(CALLERS)]
        try:
            eventually(lambda: answered[0] > CALLERS, within_s=60)
            platform.squall("deploy", changed, timeout_s=110)
            newest = {"Authorization": f"Bearer {token}"}
            eventually(
                lambda: "twice" in httpx.get(f"{url}/bits?text=the", headers=newest, timeout=60).json(), within_s=30
            )
        finally:
            stop.set()
        assert [failure for each in asking for failure in each.result()] == []
