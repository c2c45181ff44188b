"""The commands that look at a platform and change it: for people as tables, for programs as JSON."""

from __future__ import annotations

import json
import re
import select
import signal
import subprocess
import sys
from typing import Any

import pytest
from tests.sdk.cli.shell import SQUALL, Shell
from tests.support.platform import eventually

pytestmark = pytest.mark.slow

PROGRAM = """\
import os
import sys
import time

import squall

app = squall.App("shop")

@app.function()
def double(x):
    print(f"doubling {x}")
    print("no change given", file=sys.stderr)
    return 2 * x

@app.function()
def hold(started, seconds=60):
    open(started, "w").close()
    time.sleep(seconds)

@app.function(retries=0)
def fail():
    raise ValueError("sold out")
"""


@pytest.fixture(scope="module")
def shop(served: Shell) -> Shell:
    """`served` with an app deployed, and one call of it made."""
    served.write("shop.py", PROGRAM)
    served.squall("deploy", "shop.py").ok()
    served.python("import squall; squall.Function.from_name('shop', 'double').remote(21)").ok()
    return served


def rows(shell: Shell, *words: object) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(shell.squall(*words, "--json").ok().out)
    return listed


def spawn(shell: Shell, function: str, *arguments: object) -> str:
    given = ", ".join(map(repr, arguments))
    return (
        shell.python(f"import squall; print(squall.Function.from_name('shop', {function!r}).spawn({given}).object_id)")
        .ok()
        .out.strip()
    )


# ---------------------------------------------------------------- without a server


def test_the_version_is_printed() -> None:
    answer = subprocess.run([SQUALL, "version"], capture_output=True, text=True, check=True, timeout=60)

    assert re.fullmatch(r"squall \d+\.\d+\.\d+\n", answer.stdout)


def test_printing_the_version_imports_neither_typer_nor_rich() -> None:
    program = "import sys, squall.cli.main; print([m for m in ('typer', 'rich', 'http.client') if m in sys.modules])"

    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--help"], ["-h"], ["run", "--help"], ["app", "--help"], ["call", "list", "-h"]])
def test_help_is_there(words: list[str]) -> None:
    answer = subprocess.run([SQUALL, *words], capture_output=True, text=True, check=False, timeout=20)

    assert answer.returncode == 0, answer.stderr
    assert "Usage" in answer.stdout


@pytest.mark.slow
def test_doctor_tells_what_is_there_and_what_is_not(shell: Shell) -> None:
    findings = {row["what"]: row for row in json.loads(shell.squall("doctor", "--json").out)}

    assert findings["python"]["state"] == "ok"
    assert findings["platform"]["state"] == "ok"
    assert "2.15" in findings["nats-server"]["text"]
    assert findings["uv"]["state"] == "ok"
    assert "ms" in findings["data fsync"]["text"]
    assert findings["ports"]["state"] == "ok"
    assert "3.11" in findings["interpreters"]["text"]
    assert findings["process"]["state"] == "ok"
    assert findings["sandbox"]["state"] in ("ok", "note")  # it depends on the machine
    assert findings["server"]["state"] == "ok"


@pytest.mark.slow
def test_doctor_finds_a_server_that_is_down(shell: Shell) -> None:
    answer = shell.squall("doctor", SQUALL_SERVER_URL="http://127.0.0.1:9", SQUALL_TOKEN="x")

    assert answer.status == 1
    assert "✗ server" in answer.out
    assert "Fix:" in answer.out


# ---------------------------------------------------------------- apps


@pytest.mark.slow
def test_deploying_again_without_a_change_is_skipped(shop: Shell) -> None:
    answer = shop.squall("deploy", "shop.py").ok()

    assert "skipped" in answer.out
    assert next(row for row in rows(shop, "app", "list") if row["name"] == "shop")["version"] == 1


@pytest.mark.slow
def test_deploying_a_change_makes_a_new_version(shop: Shell) -> None:
    shop.write("grows.py", "import squall\napp = squall.App('grows')\n@app.function()\ndef f(): return 1\n")
    first = shop.squall("deploy", "grows.py").ok().out
    shop.write(
        "grows.py",
        "import squall\napp = squall.App('grows')\n@app.function()\ndef f(): return 2\n"
        "@app.cls()\nclass C:\n  @squall.method()\n  def m(self): pass\n",
    )

    second = shop.squall("deploy", "grows.py").ok().out

    assert "✓ App deployed in " in first
    assert "version 1" in first
    assert "version 2" in second
    assert 'squall.Function.from_name("grows", "f")' in second
    assert 'squall.Cls.from_name("grows", "C")' in second
    assert shop.python("import squall; print(squall.Function.from_name('grows', 'f').remote())").ok().out == "2\n"


@pytest.mark.slow
def test_a_deployment_that_fails_leaves_the_old_version(shop: Shell) -> None:
    shop.write(
        "shop2.py",
        PROGRAM + "\n@app.function(image=squall.Image.debian_slim().uv_pip_install('no-such-xyzzy'))\ndef g(): ...\n",
    )

    answer = shop.squall("deploy", "shop2.py").refused("image_build", "no-such-xyzzy")

    assert "Traceback" not in answer.err
    assert next(row for row in rows(shop, "app", "list") if row["name"] == "shop")["version"] == 1


@pytest.mark.slow
def test_apps_are_listed_and_stopped(shop: Shell) -> None:
    shop.write("goes.py", "import squall\napp = squall.App('goes')\n@app.function()\ndef f(): return 1\n")
    shop.squall("deploy", "goes.py").ok()
    listed = next(row for row in rows(shop, "app", "list") if row["name"] == "goes")

    table = shop.squall("app", "list").ok().out
    shop.squall("app", "stop", "goes", "--yes").ok()

    assert listed["state"] == "deployed"
    assert re.search(rf"{listed['app_id']}\s+goes\s+deployed\s+1\s+f ", table)
    assert [row["state"] for row in rows(shop, "app", "list") if row["name"] == "goes"] in ([], ["stopped"])
    answer = shop.python("import squall; squall.Function.from_name('goes', 'f').remote()")
    assert "NotFoundError" in answer.err


@pytest.mark.slow
def test_an_unknown_app_names_those_that_are_there(shop: Shell) -> None:
    shop.squall("app", "stop", "nowhere").refused("not_found", "no app 'nowhere'", "shop")


# ---------------------------------------------------------------- logs


@pytest.mark.slow
def test_logs_are_printed_to_the_stream_they_came_from(shop: Shell) -> None:
    answer = eventually(lambda: (a := shop.squall("logs", "shop").ok()).out and a.err and a)

    assert "doubling 21\n" in answer.out
    assert "no change given\n" in answer.err


@pytest.mark.slow
def test_logs_of_one_call(shop: Shell) -> None:
    call = spawn(shop, "double", 1234)
    spawn(shop, "double", 5678)

    answer = eventually(lambda: (a := shop.squall("logs", call).ok()).out and a, within_s=20)

    assert answer.out == "doubling 1234\n"


@pytest.mark.slow
def test_logs_can_be_narrowed_and_dated(shop: Shell) -> None:
    answer = shop.squall("logs", "shop", "--function", "double", "-s", "stdout", "--timestamps", "-n", "1").ok()

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} doubling \d+\n", answer.out)
    assert answer.err == ""

    whose = ("--show-function-id", "--show-function-call-id", "--show-container-id")
    answer = shop.squall("logs", "shop", "--function", "double", "-s", "stdout", "-n", "1", *whose).ok()
    assert re.fullmatch(r"double fc-\w+ co-\w+ doubling \d+\n", answer.out)


@pytest.mark.slow
def test_logs_of_one_container_and_of_the_last_seconds(shop: Shell) -> None:
    lines = rows_of(shop.squall("logs", "shop", "--json").ok().out)
    container = lines[-1]["container"]

    of_it = rows_of(shop.squall("logs", "shop", "--container", container, "-n", "1", "--json").ok().out)

    assert [line["text"] for line in of_it] == [line["text"] for line in lines if line["container"] == container][-1:]
    assert shop.squall("logs", "shop", "--since", "1h").ok().out
    shop.squall("logs", "shop", "--since", "yesterday").refused("usage", "10m", status=2)


def rows_of(lines: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


@pytest.mark.slow
def test_following_shows_lines_as_they_come(shop: Shell) -> None:
    child = shop.start("logs", "-f", "-n", "1", "-s", "stdout", "shop")
    assert child.stdout is not None
    try:
        child.stdout.readline()
        spawn(shop, "double", 4321)
        assert child.stdout.readline() == b"doubling 4321\n"
    finally:
        child.terminate()
        shop.finish(child)


@pytest.mark.slow
def test_a_deploy_can_go_on_with_the_logs(shop: Shell) -> None:
    child = shop.start("deploy", "shop.py", "--stream-logs", "--timestamps")
    assert child.stdout is not None
    try:
        assert b"skipped" in child.stdout.readline()
        line = b""
        for number in range(100):  # it listens from a moment on that it does not tell
            spawn(shop, "double", 9000 + number)
            if select.select([child.stdout], [], [], 0.5)[0]:
                line = child.stdout.readline()
                break
        assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} doubling 90\d\d\n", line)
        child.send_signal(signal.SIGINT)
        assert shop.finish(child).status == 0
    finally:
        child.kill()


# ---------------------------------------------------------------- calls


@pytest.mark.slow
def test_a_call_is_listed_and_shown(shop: Shell) -> None:
    call = spawn(shop, "double", 3)
    eventually(lambda: state(shop, call) == "succeeded")

    listed = next(row for row in rows(shop, "call", "list", "--app", "shop") if row["call"] == call)
    shown = shop.squall("call", "get", call).ok().out

    assert (listed["function"], listed["kind"], listed["state"], listed["inputs"]) == (
        "double",
        "spawn",
        "succeeded",
        1,
    )
    assert re.search(r"^state +succeeded$", shown, re.MULTILINE)
    assert re.search(r"^inputs +1/1$", shown, re.MULTILINE)


def state(shell: Shell, call: str) -> str:
    return str(json.loads(shell.squall("call", "get", call, "--json").ok().out)["state"])


@pytest.mark.slow
def test_a_failed_call_says_why(shop: Shell) -> None:
    call = spawn(shop, "fail")
    eventually(lambda: state(shop, call) == "failed")

    assert "sold out" in shop.squall("call", "get", call).ok().out


@pytest.mark.slow
def test_a_failed_call_is_listed_and_redriven(shop: Shell) -> None:
    call = spawn(shop, "fail")
    eventually(lambda: state(shop, call) == "failed")

    listed = {row["call"]: row for row in rows(shop, "call", "list", "--failed", "--app", "shop", "--since", "10m")}
    redriven = shop.squall("call", "redrive", call).ok().out
    into = re.match(rf"{call} -> (fc-\w+)\n", redriven)
    assert into is not None, redriven
    shown = shop.squall("call", "get", call).ok().out
    eventually(lambda: state(shop, into[1]) == "failed")

    assert (listed[call]["function"], listed[call]["outcome"], listed[call]["error"]) == (
        "fail",
        "failed",
        "ValueError: sold out",
    )
    assert f"redriven to {into[1]}" in shown
    assert "Traceback" in shown
    assert f"from      {call}.0" in shop.squall("call", "get", into[1]).ok().out
    rest = shop.squall("call", "redrive", "--all", "--app", "shop").ok().out
    assert f"{into[1]} -> " in rest
    assert f"{call} -> " not in rest


@pytest.mark.slow
def test_redrive_wants_one_call_or_all(shop: Shell) -> None:
    shop.squall("call", "redrive").refused("usage", "either a call or --all", status=2)
    shop.squall("call", "list", "--since", "1h").refused("usage", "--since is for --failed", status=2)


@pytest.mark.slow
def test_a_call_is_cancelled_once(shop: Shell) -> None:
    started = shop.work / "started"
    call = spawn(shop, "hold", str(started))
    eventually(started.exists, within_s=20)

    first = shop.squall("call", "cancel", call).ok().out
    second = shop.squall("call", "cancel", call).ok().out

    assert first == f"Cancelled 1 input of {call}.\n"
    assert second == f"{call} had already ended.\n"
    assert state(shop, call) == "cancelled"


@pytest.mark.slow
def test_all_calls_of_a_function_are_cancelled_and_counted(shop: Shell) -> None:
    spawned = "squall.Function.from_name('shop', 'hold').spawn_map([" + repr(str(shop.work / "none")) + "] * 30)"
    shop.python(f"import squall; {spawned}").ok()

    first = shop.squall("call", "cancel", "--all", "--app", "shop", "--function", "hold").ok().out
    second = shop.squall("call", "cancel", "--all", "--app", "shop").ok().out

    assert first == "Cancelled 30 inputs of shop.hold.\n"
    assert second == "Cancelled 0 inputs of shop.\n"
    shop.squall("call", "cancel", "--all").refused("usage", "--all with --app", status=2)


@pytest.mark.slow
@pytest.mark.parametrize("command", [("call", "get"), ("call", "cancel"), ("trace",)])
def test_what_is_no_call_id_is_refused(shop: Shell, command: tuple[str, ...]) -> None:
    shop.squall(*command, "nonsense").refused("invalid", "'nonsense' is not a call id")


@pytest.mark.slow
def test_an_unknown_call_is_not_found(shop: Shell) -> None:
    shop.squall("call", "get", "fc-01m8000000000000000000000000"[:29]).refused("not_found")


@pytest.mark.slow
def test_a_trace_shows_the_span_tree_and_where_the_time_went(shop: Shell) -> None:
    call = spawn(shop, "double", 5)
    eventually(lambda: state(shop, call) == "succeeded")

    text = eventually(lambda: "user.code" in (t := shop.squall("trace", call).ok().out) and t)

    assert re.search(r"^span +service +start +ms$", text, re.MULTILINE)
    assert re.search(r"^ +attempt .*█|▏", text, re.MULTILINE)
    assert re.search(r"^phase +ms +share$", text, re.MULTILINE)
    assert re.search(r"^other +[\d.]+ +[\d.]+ %$", text, re.MULTILINE)
    body = json.loads(shop.squall("trace", call, "--json").ok().out)
    assert {span["name"] for span in body["spans"]} >= {"call", "gateway.accept", "attempt", "user.code"}


# ---------------------------------------------------------------- machines


@pytest.mark.slow
def test_containers_and_nodes_are_listed(shop: Shell) -> None:
    started = shop.work / "container-started"
    call = spawn(shop, "hold", str(started))
    eventually(started.exists, within_s=20)

    containers = rows(shop, "container", "list", "--app", "shop")
    (node,) = rows(shop, "node", "list")
    shop.squall("call", "cancel", call).ok()

    assert "hold" in [row["function"] for row in containers if row["running"]]
    assert {row["node"] for row in containers} == {node["node"]}
    assert node["backends"][0] == "process"
    assert node["node"] in shop.squall("node", "list").ok().out
