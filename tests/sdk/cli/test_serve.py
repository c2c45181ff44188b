"""`squall serve`: an app that is loaded again when its program is saved."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sdk.cli.shell import Shell
from tests.support.platform import eventually

pytestmark = pytest.mark.slow

PROGRAM = """\
import squall
app = squall.App("live")

@app.function()
def answer():
    return 1
"""


class Serving:
    """A `squall serve` on a platform of its own."""

    def __init__(self, shell: Shell, *more: object) -> None:
        self.program = shell.write("live.py", PROGRAM)
        self._said = shell.folder / "said"
        with self._said.open("wb") as streams:
            self.child: subprocess.Popen[bytes] = shell.start("serve", "live.py", *more, streams=streams)
        self.saw("POST http")

    def said(self) -> str:
        return self._said.read_text()

    def saw(self, text: str, times: int = 1) -> None:
        eventually(lambda: self.said().count(text) >= times, within_s=30, what=self.said)

    def save(self, text: str) -> None:
        self.program.write_text(text)

    def call(self, token: str) -> object:
        found = re.search(r"POST (http\S+/answer/call)", self.said())
        assert found is not None
        request = urllib.request.Request(found[1], b"{}", {"Authorization": f"Bearer {token}"}, method="POST")
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)["result"]

    def end(self) -> int:
        self.child.send_signal(signal.SIGINT)
        return self.child.wait(30)


@pytest.fixture
def serving(served: Shell) -> Iterator[Serving]:
    serving = Serving(served)
    yield serving
    if serving.child.poll() is None:
        serving.child.kill()
        serving.child.wait()


def token_of(shell: Shell) -> str:
    return (Path(shell.home) / "local" / "token").read_text().strip()


def test_a_saved_change_is_served_by_the_same_app_and_ctrl_c_stops_it(served: Shell, serving: Serving) -> None:
    token = token_of(served)
    assert serving.call(token) == 1

    serving.save(PROGRAM.replace("return 1", "return 2") + "\n@app.function()\ndef more():\n    return 3\n")
    serving.saw("Loaded. Changed: answer; new: more.")
    assert serving.call(token) == 2  # at the address of before

    assert serving.end() == 0
    states = json.loads(served.squall("app", "list", "--json").ok().out)
    assert [app["state"] for app in states if app["name"] == "live"] == ["stopped"]


def test_a_program_that_cannot_be_loaded_leaves_the_app_as_it_was(served: Shell, serving: Serving) -> None:
    serving.save(PROGRAM.replace("return 1", "return 1 +"))
    serving.saw("the app goes on as it was")
    assert "live.py:6" in serving.said()
    assert serving.call(token_of(served)) == 1

    serving.save(PROGRAM)
    serving.saw("Loaded. Nothing has changed.")
    assert serving.end() == 0


def test_serve_refuses_what_is_not_there(shell: Shell) -> None:
    shell.squall("serve", "nowhere.py").refused("program", "no file nowhere.py")


def test_serve_ends_by_itself_after_its_time_and_leaves_nothing(shell: Shell) -> None:
    shell.write("live.py", PROGRAM)
    ended = shell.squall("serve", "live.py", "--timeout", "1").ok()
    assert "The time is over." in ended.err
    shell.nothing_left()
