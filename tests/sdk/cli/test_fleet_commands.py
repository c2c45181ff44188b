"""The commands about versions, functions, containers, machines and tokens, on a platform that stays."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tests.sdk.cli.shell import Shell
from tests.support.platform import eventually

pytestmark = pytest.mark.slow

PROGRAM = """\
import os
import time

import squall

app = squall.App("depot")

@app.function()
def release():
    print("Release ONE")
    return 1

@app.function(retries=2, timeout=7, cpu=0.25)
def declared():
    pass

@app.function()
def hold(started, go):
    open(started, "a").close()
    while not os.path.exists(go):
        time.sleep(0.01)
    return "held"

@app.cls()
class Shelf:
    size: int = squall.parameter(default=3)

    @squall.method()
    def fill(self):
        yield from range(self.size)
"""


@pytest.fixture(scope="module")
def depot(served: Shell) -> Shell:
    served.write("depot.py", PROGRAM)
    served.squall("deploy", "depot.py").ok()
    return served


def told(shell: Shell, *words: object) -> Any:
    return json.loads(shell.squall(*words, "--json").ok().out)


def result(shell: Shell, function: str = "release") -> str:
    return (
        shell.python(f"import squall; print(squall.Function.from_name('depot', {function!r}).remote())")
        .ok()
        .out.strip()
    )


def spawn(shell: Shell, function: str, *arguments: object) -> str:
    given = ", ".join(repr(str(argument)) for argument in arguments)
    program = f"import squall; print(squall.Function.from_name('depot', {function!r}).spawn({given}).object_id)"
    return shell.python(program).ok().out.strip()


def containers(shell: Shell, function: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = told(shell, "container", "list")
    return [row for row in found if row["function"] == function]


# ---------------------------------------------------------------- versions


def test_a_rollback_brings_the_earlier_version_back_and_says_so(depot: Shell) -> None:
    assert result(depot) == "1"
    depot.write("depot.py", PROGRAM.replace("return 1", "return 2"))
    depot.squall("deploy", "depot.py").ok()
    assert result(depot) == "2"

    assert "depot runs version 1 again, as version 3" in depot.squall("app", "rollback", "depot").ok().out
    assert result(depot) == "1"
    versions = told(depot, "app", "history", "depot")
    assert [(row["version"], row["rolled_back_to"], row["current"]) for row in versions] == [
        (3, 1, True),
        (2, 0, False),
        (1, 0, False),
    ]
    assert "v3 (= v1)" in depot.squall("app", "history", "depot").ok().out

    depot.squall("app", "rollback", "depot", "v2").ok()
    assert result(depot) == "2"


def test_what_cannot_be_gone_back_to_is_refused(depot: Shell) -> None:
    depot.squall("app", "rollback", "depot", "v99").refused("not_found", "no version 99", "squall app history")
    depot.squall("app", "rollback", "depot", "newest").refused("usage", "'newest' is not a version", status=2)
    depot.squall("app", "rollback", "nowhere").refused("not_found", "no app 'nowhere'")


# ---------------------------------------------------------------- functions and logs


def test_a_function_tells_what_it_declares_and_does(depot: Shell) -> None:
    shown = depot.squall("function", "info", "depot", "declared").ok().out
    for words in ("0.25 cores", "7 s a call", "retries      2", "POST /v1/apps/depot/functions/declared/call"):
        assert words in shown
    assert "forks of a template" in shown
    assert "fill (generator)" in depot.squall("function", "info", "depot", "Shelf").ok().out
    assert told(depot, "function", "info", "depot", "Shelf")["spec"]["parameters"][0]["name"] == "size"
    depot.squall("function", "info", "depot", "nope").refused("not_found", "no function 'nope'", "Shelf")

    result(depot)
    rows = told(depot, "function", "stats", "depot", "release")
    assert {row["function"] for row in rows} == {"release"}
    (container,) = told(depot, "function", "info", "depot", "release")["containers"]
    assert container["how"] == "fork"
    assert "started as   1 fork" in depot.squall("function", "info", "depot", "release").ok().out
    assert any(row["ready"] for row in rows)


def test_logs_are_searched_and_bounded_in_time(depot: Shell) -> None:
    result(depot)
    search = ("logs", "depot", "--search", "release one")
    eventually(lambda: "Release ONE" in depot.squall(*search).ok().out, within_s=20)
    assert "Release ONE" in depot.squall(*search, "--since", "1h").ok().out
    assert depot.squall(*search, "--until", "1h").ok().out == ""
    assert depot.squall("logs", "depot", "--search", "nobody printed this").ok().out == ""
    depot.squall("logs", "depot", "--until", "yesterday").refused("usage", "not a time", status=2)
    depot.squall("logs", "depot", "-f", "--until", "1h").refused("usage", "--until does not go with", status=2)


# ---------------------------------------------------------------- containers and machines


def test_a_command_runs_beside_a_container(depot: Shell) -> None:
    result(depot)
    container = containers(depot, "release")[0]["container"]
    program = "import os, sys; print(os.environ['SQUALL_CONTAINER_ID']); print('bad', file=sys.stderr); sys.exit(3)"
    ended = depot.squall("container", "exec", container, "python", "-c", program)
    assert (ended.status, ended.out, ended.err) == (3, f"{container}\n", "bad\n")

    code = "import depot; print(depot.app.name)"
    assert depot.squall("container", "exec", container, "python", "-c", code).ok().out == "depot\n"
    depot.squall("container", "exec", container, "no-such-program").refused("conflict", "cannot be started")
    assert depot.squall("container", "exec", "--no-pty", container, "python", "-c", code).ok().out == "depot\n"
    depot.squall("container", "exec", "--pty", container, "sh").refused("unimplemented", "no terminal")
    late = depot.squall("container", "exec", "--timeout", "1", container, "sleep", "30")
    late.refused("conflict", "not ended after 1 s")
    depot.squall("container", "exec", "co-nowhere", "ls").refused("not_found", "no container")


def test_a_stopped_container_gives_its_input_to_another_one(depot: Shell) -> None:
    started, go = depot.work / "started", depot.work / "go"
    call = spawn(depot, "hold", started, go)
    eventually(started.exists, within_s=20)
    container = containers(depot, "hold")[0]["container"]
    started.unlink()

    depot.squall("container", "stop", container).ok()
    eventually(started.exists, within_s=40)  # it began again, without using up a retry
    go.touch()
    eventually(lambda: told(depot, "call", "get", call)["state"] == "succeeded", within_s=20)
    assert all(row["container"] != container for row in containers(depot, "hold"))


def test_a_deploy_that_recreates_ends_what_runs_and_is_in_the_history_by_its_tag(depot: Shell) -> None:
    started, go = depot.work / "started-once", depot.work / "go-on"
    call = spawn(depot, "hold", started, go)
    eventually(started.exists, within_s=20)
    before = containers(depot, "hold")[0]["container"]
    started.unlink()

    depot.write("depot.py", PROGRAM + "\n# r-2\n")
    deployed = depot.squall("deploy", "--strategy", "recreate", "--tag", "r-2", "depot.py").ok()
    assert re.search(r"version \d+, r-2 ", deployed.out)
    eventually(started.exists, within_s=40)  # it began again, in a new container of the version it was made to
    assert before not in [row["container"] for row in containers(depot, "hold")]
    go.touch()
    assert depot.squall("call", "get", call).ok()
    assert told(depot, "app", "history", "depot")[0]["tag"] == "r-2"

    started, go = depot.work / "started-again", depot.work / "go-again"
    call = spawn(depot, "hold", started, go)
    eventually(started.exists, within_s=20)
    before = containers(depot, "hold")[0]["container"]
    started.unlink()
    assert "end now" in depot.squall("app", "rollback", "depot", "--strategy", "recreate").ok().out
    eventually(started.exists, within_s=40)
    assert before not in [row["container"] for row in containers(depot, "hold")]
    go.touch()
    depot.squall("call", "get", call).ok()
    depot.squall("app", "rollback", "depot").ok()
    depot.squall("app", "rollback", "depot", "--strategy", "blue").refused("invalid", "rolling")
    depot.squall("deploy", "--tag", "a b", "depot.py").refused("invalid", "'a b' is not valid")
    depot.squall("deploy", "--strategy", "blue", "depot.py").refused("invalid", "rolling")


def test_programs_read_logs_numbers_and_declarations(depot: Shell) -> None:
    result(depot)
    program = """
import squall
f, app = squall.Function.from_name("depot", "release"), squall.App.lookup("depot")
print([entry.message for entry in f.logs.tail(1)], {entry.function for entry in app.logs.fetch(source="stdout")})
print(len(app.logs.fetch(search="no such words")), f.logs.fetch(since=4e9))
print(f.info().spec.name, 0 < f.info().version <= app.info().version, app.info().name, app.info().functions[-1])
print(f.stats().num_total_runners, app.stats()["release"].num_total_runners)
"""
    eventually(lambda: "Release ONE" in depot.squall("logs", "depot").ok().out)
    lines = depot.python(program).ok().out.splitlines()
    assert lines == ["['Release ONE\\n'] {'release'}", "0 []", "release True depot release", "1 1"]


def test_a_drained_machine_ends_what_runs_and_takes_nothing_new(depot: Shell) -> None:
    started, go = depot.work / "started-2", depot.work / "go-2"
    call = spawn(depot, "hold", started, go)
    eventually(started.exists, within_s=20)
    [node] = told(depot, "node", "list")
    try:
        depot.squall("node", "drain", node["node"]).ok()
        assert told(depot, "node", "list")[0]["draining"]
        waiting = spawn(depot, "release")
        reason = lambda: told(depot, "call", "get", waiting)["waiting"]  # noqa: E731
        eventually(lambda: "is draining" in reason(), within_s=20, what=reason)
        late = depot.squall("node", "drain", node["node"], "--wait", "0")
        late.refused("timeout", "still on")

        go.touch()
        eventually(lambda: told(depot, "call", "get", call)["state"] == "succeeded", within_s=20)
        assert told(depot, "node", "drain", node["node"], "--wait", "20")["containers"] == 0
    finally:
        depot.squall("node", "resume", node["node"]).ok()
    eventually(lambda: told(depot, "call", "get", waiting)["state"] == "succeeded", within_s=20)
    depot.squall("node", "drain", "nowhere").refused("not_found", "no node 'nowhere'", node["node"])


# ---------------------------------------------------------------- images

PUBLISHING = """\
import squall
image = squall.Image.debian_slim().env({"COLOUR": "blue"}).publish("team/base".replace("/", "-"))
again = squall.Image.from_name("team-base")
assert again.object_id == image.object_id == squall.Image.from_id(image.object_id).object_id
print(again.env({"MORE": "1"}).object_id != image.object_id, image.object_id)
"""


def test_images_are_published_listed_looked_at_and_found_by_name(depot: Shell) -> None:
    differs, image = depot.python(PUBLISHING).ok().out.split()
    assert differs == "True"
    row = next(row for row in told(depot, "image", "list") if row["image"] == image)
    assert (row["state"], row["names"]) == ("ready", ["team-base:latest"])
    assert image in depot.squall("image", "list").ok().out
    shown = depot.squall("image", "inspect", "team-base").ok().out
    assert '"COLOUR": "blue"' in shown
    assert told(depot, "image", "inspect", image)["spec"]["steps"][0]["kind"] == "env"
    assert "image ready" in depot.squall("image", "logs", "team-base").ok().out
    depot.squall("image", "inspect", "missing").refused("not_found", "no image is published")
    depot.squall("image", "inspect", "im-0").refused("invalid", "not the id")


def test_an_image_that_processes_cannot_have_says_which_containers_can(shell: Shell) -> None:
    shell.write(
        "apt.py",
        "import squall\napp = squall.App()\n@app.function(image=squall.Image.debian_slim().apt_install('nothing'))\n"
        "def f(): pass\n",
    )
    refused = shell.squall("run", "apt.py", SQUALL_GPU_AGENT_BACKEND="process")
    refused.refused("image_build", "does not have nothing", "sandbox")


def test_what_is_not_there_may_be_deleted_if_that_is_allowed(depot: Shell) -> None:
    for what in ("dict", "queue", "volume", "secret"):
        depot.squall(what, "delete", "-y", "no-such").refused("not_found", "no-such")
        assert (
            depot.squall(what, "delete", "-y", "--allow-missing", "no-such").ok().out
            == f"There is no {what} no-such.\n"
        )


def test_flags_have_the_names_that_they_have_elsewhere(depot: Shell) -> None:
    depot.squall("container", "list", "--app-id", "no-such").refused("not_found", "no-such")
    depot.squall("logs", "no-such", "--source", "stdout", "--function-call", "fc-1").refused("not_found", "no-such")


def test_what_is_ended_or_removed_at_a_terminal_is_asked_for_first(depot: Shell) -> None:
    depot.squall("secret", "create", "asked", "A=1").ok()
    terminal = depot.on_terminal("secret", "delete", "asked")
    terminal.until("Delete secret asked? [y/N] ")
    terminal.type("n\n")
    assert terminal.end() == 2
    terminal = depot.on_terminal("secret", "delete", "-y", "asked")
    terminal.until("Deleted secret asked")
    assert terminal.end() == 0


# ---------------------------------------------------------------- tokens


def test_tokens_are_made_used_listed_and_revoked(depot: Shell) -> None:
    made = depot.squall("token", "create", "backend", "--scope", "caller", "--expires", "1h").ok()
    token, found = made.out.strip(), re.search(r"tk-[0-9a-f]+", made.err)
    assert found is not None
    row = next(row for row in told(depot, "token", "list") if row["id"] == found[0])
    assert (row["name"], row["scope"]) == ("backend", "caller")
    assert row["expires_at"] > row["created_at"]

    url = told(depot, "status")["url"]
    mine = {"SQUALL_SERVER_URL": url, "SQUALL_TOKEN": token}
    depot.squall("app", "list", **mine).refused("permission_denied", "caller")
    depot.squall("token", "revoke", row["id"]).ok()
    assert row["id"] not in [each["id"] for each in told(depot, "token", "list")]
    depot.squall("token", "revoke", row["id"]).refused("not_found", "no token")
    depot.squall("token", "create", "x", "--scope", "service").refused("invalid", "cannot be given")


def test_run_prints_the_result_as_json(depot: Shell) -> None:
    depot.write("stock.py", PROGRAM)
    ended = depot.squall("run", "--json", "stock.py::release").ok()
    assert json.loads(ended.out) == 1
    assert "Release ONE" in ended.err
    depot.squall("run", "-d", "--json", "stock.py::release").refused("usage", "--detach", status=2)
    depot.squall("run", "-i", "stock.py::release").refused("usage", "needs a terminal", status=2)


def test_an_interactive_run_opens_a_prompt_while_the_app_runs(depot: Shell) -> None:
    depot.write("stock.py", PROGRAM)
    terminal = depot.on_terminal("run", "-i", "stock.py::release")
    terminal.until("Ctrl-D ends it")
    terminal.type("print('both', result, release.remote())\n")
    terminal.until("both 1 1\r\n>>> ")  # an end of file that comes before the prompt is lost to it
    terminal.type("\x04")
    assert terminal.end() == 0


def test_objects_take_the_flags_that_programs_know(served: Shell) -> None:
    served.squall("volume", "create", "old-name", "--version", "2").ok()
    served.squall("volume", "create", "third", "--version", "3").refused("usage", "--version", status=2)
    assert "is called new-name now" in served.squall("volume", "rename", "-y", "old-name", "new-name").ok().out

    fill = "squall.Dict.from_name('flags', create_if_missing=True).update({'key': 'a' * 300})"
    served.python(f"import squall\n{fill}").ok()
    assert "'key'" not in served.squall("dict", "items", "flags").ok().out
    shown = served.squall("dict", "items", "flags", "-r", "--json").ok().out
    assert json.loads(shown) == [{"key": "'key'", "value": repr("a" * 300)}]


def test_what_environments_cannot_do_is_refused(served: Shell) -> None:
    served.squall("environment", "create", "walled", "--restricted").refused("unimplemented", "roles", "--scope caller")
    assert "walled" not in served.squall("environment", "list").ok().out
    for flag, told_so in (("--set-name", "cannot be renamed"), ("--set-web-suffix", "web addresses")):
        served.squall("environment", "update", "main", flag, "other").refused("unimplemented", told_so)
    served.squall("environment", "update", "main").refused("usage", "nothing is to be updated", status=2)
