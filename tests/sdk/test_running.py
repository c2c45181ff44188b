"""An app's life: run, deploy, stop; what the output is told, and what the server is sent."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sdk.fake_gateway import FakeGateway

import squall
from squall import exception, running, session
from squall.config import ServerAddress
from squall.http_api.apps import AppStatus
from squall.http_api.routes import Route
from squall.http_api.traces import LogEntry
from squall.output import Output, PlainOutput, use

ROOT = Path(__file__).resolve().parents[2]
app = squall.App("life", tags={"team": "a"})


@app.function()
def double(x: int) -> int:
    return 2 * x


class Recording(Output):
    """Keeps what it is told."""

    live = True

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.logged: list[str] = []
        self.seen_status = threading.Event()

    def image_building(self, image_id: str, description: str) -> None:
        self.steps.append("building")

    def image_log(self, image_id: str, entry: LogEntry) -> None:
        self.steps.append(f"build: {entry.text}")

    def image_ready(self, image_id: str) -> None:
        self.steps.append("built")

    def app_created(self, app_id: str, name: str) -> None:
        self.steps.append(f"app {app_id} {name}")

    def function_created(self, name: str) -> None:
        self.steps.append(f"function {name}")

    def app_deployed(self, app_id: str, name: str, version: int, unchanged: bool) -> None:
        self.steps.append(f"deployed {name} {version}")

    def status(self, status: AppStatus) -> None:
        self.seen_status.set()

    def log(self, entry: LogEntry) -> None:
        self.logged.append(entry.text)

    def app_done(self, app_id: str, aborted: bool) -> None:
        self.steps.append("aborted" if aborted else "done")

    def app_detached(self, app_id: str) -> None:
        self.steps.append(f"{app_id} goes on")


def stops(gateway: FakeGateway) -> int:
    return gateway.paths("POST").count(Route.APP_STOP.format(app="ap-1"))


def test_an_app_exists_for_the_time_of_its_block(gateway: FakeGateway, connected: session.Session) -> None:
    gateway.serve(app)
    with app.run() as same:
        assert (same, app.app_id) == (app, "ap-1")
        assert double.object_id == "fu-double"
        assert double.remote(2) == 4
    assert app.app_id is None
    assert stops(gateway) == 1
    published = gateway.apps[0]
    assert (published["name"], published["mode"], published["environment"]) == ("life", "ephemeral", "main")
    assert published["tags"] == {"team": "a"}


def test_an_app_can_run_again_but_not_twice_at_once(gateway: FakeGateway, connected: session.Session) -> None:
    with app.run(), pytest.raises(exception.InvalidError, match="already running"), app.run():
        pass
    with app.run():
        pass
    assert len(gateway.apps) == 2


def test_an_app_that_fails_is_stopped_too(gateway: FakeGateway, connected: session.Session) -> None:
    shown = Recording()
    with use(shown), pytest.raises(ZeroDivisionError), app.run():
        _ = 1 / 0
    assert stops(gateway) == 1
    assert shown.steps[-1] == "aborted"


def test_a_detached_app_goes_on(gateway: FakeGateway, connected: session.Session) -> None:
    shown = Recording()
    with use(shown), app.run(detach=True):
        pass
    assert shown.steps[-1] == "ap-1 goes on"
    assert gateway.apps[0]["mode"] == "detached"
    assert stops(gateway) == 0


def test_the_end_of_a_detached_run_says_how_to_see_and_stop_the_app(
    gateway: FakeGateway, connected: session.Session, capsys: pytest.CaptureFixture[str]
) -> None:
    with use(PlainOutput()), app.run(detach=True):
        pass
    told = capsys.readouterr().err
    assert "`squall app logs -f ap-1`" in told
    assert "`squall app stop ap-1`" in told
    assert "completed" not in told


def test_addresses_of_what_the_server_shows(gateway: FakeGateway, connected: session.Session) -> None:
    server = connected.client.address.url
    assert app.get_dashboard_url() == double.get_dashboard_url() == f"{server}/v1/apps"
    with app.run():
        assert app.get_dashboard_url() == double.get_dashboard_url() == f"{server}/v1/apps/ap-1/status"
    call = squall.FunctionCall.from_id("fc-00000000000000000000000001")
    assert call.get_dashboard_url() == f"{server}/v1/calls/fc-00000000000000000000000001/trace"


def test_an_app_without_a_name_is_called_like_its_file(gateway: FakeGateway, connected: session.Session) -> None:
    nameless = squall.App()
    nameless.function()(double.get_raw_f())
    with nameless.run():
        pass
    assert gateway.apps[0]["name"] == __name__.rpartition(".")[2]


def test_the_output_is_told_every_step_in_order(gateway: FakeGateway, connected: session.Session) -> None:
    gateway.build_log = ["fetching", "installing"]
    gateway.logs = [{"at": 0.0, "stream": "stdout", "text": text} for text in ("one\n", "two\r", "three\n")]
    shown = Recording()
    with use(shown), app.run():
        pass
    assert shown.steps == [
        "building",
        "build: fetching",
        "build: installing",
        "built",
        "app ap-1 life",
        "function double",
        "done",
    ]
    assert shown.logged == ["one\n", "two\r", "three\n"]


def test_a_silent_program_asks_for_no_logs_and_no_status(gateway: FakeGateway, connected: session.Session) -> None:
    with app.run():
        pass
    assert not [path for path in gateway.paths("GET") if "/logs" in path or "/status" in path]


def test_a_failing_build_is_raised_and_nothing_is_published(gateway: FakeGateway, connected: session.Session) -> None:
    gateway.build_error = exception.ImageBuildError("no such package")
    with pytest.raises(exception.ImageBuildError, match="no such package"), app.run():
        pass
    assert gateway.apps == []


def test_a_missing_local_file_is_raised_and_nothing_is_published(
    gateway: FakeGateway, connected: session.Session
) -> None:
    broken = squall.App("x", image=squall.Image.debian_slim().add_local_file("/no/such/file", "/x"))
    broken.function()(double.get_raw_f())
    with pytest.raises(exception.InvalidError, match="/no/such/file"), broken.run():
        pass
    assert gateway.apps == []
    assert broken.app_id is None


def test_the_server_hears_that_the_program_lives(
    gateway: FakeGateway, connected: session.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "HEARTBEAT_S", 0.01)
    with app.run():
        while Route.APP_HEARTBEAT.format(app="ap-1") not in gateway.paths("POST"):
            double.local(1)


def test_a_deployed_app_answers_at_once(gateway: FakeGateway, connected: session.Session) -> None:
    gateway.serve(app)
    assert app.deploy() is app
    assert double.remote(4) == 8
    assert gateway.apps[0]["mode"] == "deployed"
    app.stop()
    assert app.app_id is None


def test_a_deployed_app_needs_a_name_and_a_server_that_stays(home: Path, gateway: FakeGateway) -> None:
    with pytest.raises(exception.InvalidError, match="name"):
        squall.App().deploy()
    with pytest.raises(exception.ConnectionError, match="no server"):
        app.deploy()


def test_an_app_does_not_run_inside_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUALL_CONTAINER", "1")
    with pytest.raises(exception.ExecutionError, match="inside a container"), app.run():
        pass
    with pytest.raises(exception.ExecutionError, match="inside a container"):
        app.deploy(name="x")


def test_in_a_container_functions_are_those_of_its_app(
    gateway: FakeGateway, address: ServerAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.functions["double"] = lambda x: 2 * x
    monkeypatch.setenv("SQUALL_CONTAINER", "1")
    monkeypatch.setenv("SQUALL_SERVER_URL", address.url)
    monkeypatch.setenv("SQUALL_TOKEN", address.token)
    monkeypatch.setenv("SQUALL_APP_ID", "ap-7")
    assert double.remote(3) == 6
    assert gateway.headers_of("POST /v1/calls")[-1]["Squall-Function"] == "ap-7/double"
    session.current().client.close()


def test_a_program_that_is_interrupted_stops_its_app(gateway: FakeGateway, connected: session.Session) -> None:
    with pytest.raises(KeyboardInterrupt), app.run():
        raise KeyboardInterrupt
    assert stops(gateway) == 1


def test_plain_output_writes_logs_to_the_streams_they_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    shown = PlainOutput(steps=False)
    shown.app_created("ap-1", "x")
    shown.log(LogEntry(at=0, stream="stdout", text="out\n"))
    shown.log(LogEntry(at=0, stream="stderr", text="err\n"))
    assert capsys.readouterr() == ("out\n", "err\n")


def test_a_log_line_does_not_come_between_a_printed_line_and_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = PlainOutput(steps=False)
    printed = tmp_path / "printed"
    with printed.open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        print("first")
        shown.log(LogEntry(at=0, stream="stdout", text="log 1\n"))
        stream.write("second")  # as far as `print` has come when another thread logs
        shown.log(LogEntry(at=0, stream="stdout", text="log 2\n"))
        stream.write("\n")
        monkeypatch.undo()
    assert printed.read_text().splitlines() == ["first", "log 1", "log 2", "second"]


SCRIPT = """
import squall

app = squall.App("script")

class Thing:
    def __init__(self, x): self.x = x

class Failure(Exception):
    pass

@app.function()
def take(thing): ...

if __name__ == "__main__":
    with app.run():
        thing = take.remote(Thing(4))
        print(type(thing) is Thing, thing.x)
        try:
            take.remote(Thing(0))
        except Failure as failure:
            print("caught", failure)
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Path]:
    """A program of its own."""
    path = tmp_path / "my_script.py"
    path.write_text(SCRIPT)
    sys.path.insert(0, str(tmp_path))
    yield path
    sys.path.remove(str(tmp_path))
    sys.modules.pop("my_script", None)


@pytest.mark.slow
def test_a_script_and_its_containers_mean_the_same_classes(
    script: Path, gateway: FakeGateway, address: ServerAddress, home: Path
) -> None:
    def take(thing: object) -> object:
        import my_script  # type: ignore[import-not-found]  # as a container imports it

        assert type(thing) is my_script.Thing
        if not thing.x:
            raise my_script.Failure("empty")
        return thing

    gateway.functions["take"] = take
    answer = subprocess.run(
        [sys.executable, str(script)],
        env={
            "PYTHONPATH": str(ROOT / "sdk" / "src"),
            "SQUALL_SERVER_URL": address.url,
            "SQUALL_TOKEN": address.token,
            "SQUALL_HOME": str(home),
            "PATH": os.environ["PATH"],
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert answer.stdout.splitlines() == ["True 4", "caught empty"], answer.stderr
    code = gateway.apps[0]["functions"][0]["code"]
    assert (code["module"], code["qualname"]) == ("my_script", "take")
