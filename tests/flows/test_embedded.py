"""The embedded platform from outside: how it starts, stops and is killed, and that nothing is ever left of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sdk.cli.shell import Shell
from tests.support.platform import Platform, eventually, process

pytestmark = pytest.mark.slow

HOLDS = """\
import os
import time

import squall

app = squall.App("embedded")

@app.function()
def hold(started):
    open(started, "w").close()
    time.sleep(60)

@app.local_entrypoint()
def main():
    print("begin", flush=True)
    hold.remote({started!r})
"""
DOUBLE = """\
import squall

app = squall.App("kept")

@app.function()
def double(x):
    return 2 * x
"""
CALL_DOUBLE = "import squall; print(squall.Function.from_name('kept', 'double').remote(21))"


@pytest.fixture
def user() -> Iterator[Shell]:
    """Nothing may be left after any of these tests."""
    shell = Shell()
    try:
        yield shell
        shell.nothing_left()
    finally:
        shell.remove()


def a_run_that_holds(user: Shell) -> tuple[subprocess.Popen[bytes], Path]:
    """`squall run` whose function is running in its container."""
    started = user.work / "started"
    user.write("holds.py", HOLDS.format(started=str(started)))
    child = user.start("run", "holds.py")
    eventually(started.exists, within_s=40, what="the function did not start")
    return child, started


# ---------------------------------------------------------------- a temporary one


def test_a_run_without_a_server_starts_one_and_leaves_nothing(user: Shell) -> None:
    user.write("app.py", DOUBLE + "\n@app.local_entrypoint()\ndef main():\n    print(double.remote(21))\n")

    answer = user.squall("run", "app.py").ok()

    assert answer.out == "42\n"
    assert user.processes() == [], "something still runs when the command has ended"
    assert user.temporary_files() == []
    assert not list(user.home.rglob("*")), "a temporary platform has no business in the user's home"


def test_two_runs_at_the_same_time_do_not_meet(user: Shell) -> None:
    user.write("app.py", DOUBLE + "\n@app.local_entrypoint()\ndef main():\n    print(double.remote(21))\n")

    children = [user.start("run", "-q", "app.py") for _ in range(2)]

    assert [user.finish(child).ok().out for child in children] == ["42\n", "42\n"]


def test_a_plain_script_gets_one_for_the_time_of_its_app(user: Shell) -> None:
    script = user.write(
        "script.py",
        """\
        import squall

        app = squall.App("script")

        @app.function()
        def double(x):
            print("doubling", x)
            return 2 * x

        if __name__ == "__main__":
            with squall.enable_output(), app.run():
                print(double.remote(21))
        """,
    )

    answer = user.python(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')").ok()

    assert sorted(answer.out.splitlines()) == ["42", "doubling 21"]
    assert "✓ Initialized app script" in answer.err
    assert user.processes() == []
    assert user.temporary_files() == []


def test_the_first_ctrl_c_stops_in_order(user: Shell) -> None:
    child, _ = a_run_that_holds(user)

    os.killpg(child.pid, signal.SIGINT)
    answer = user.finish(child)

    assert answer.status == 130
    assert "App aborted." in answer.err
    assert "Traceback" not in answer.err
    assert user.processes() == []
    assert user.temporary_files() == []


def test_the_second_ctrl_c_does_not_wait(user: Shell) -> None:
    user.write(
        "stubborn.py",
        """\
        import time, squall
        app = squall.App("stubborn")

        @app.local_entrypoint()
        def main():
            try:
                print("begin", flush=True)
                time.sleep(60)
            finally:
                print("will not go", flush=True)
                time.sleep(60)
        """,
    )
    child = user.start("run", "stubborn.py")
    assert child.stdout is not None
    assert child.stdout.readline() == b"begin\n"

    os.killpg(child.pid, signal.SIGINT)
    assert child.stdout.readline() == b"will not go\n"
    os.killpg(child.pid, signal.SIGINT)

    assert user.finish(child, timeout_s=15).status == 130
    assert user.temporary_files() == []


def test_sigterm_stops_in_order(user: Shell) -> None:
    child, _ = a_run_that_holds(user)

    child.terminate()

    assert user.finish(child).status == 143
    assert user.processes() == []


def test_a_killed_command_takes_its_platform_with_it(user: Shell) -> None:
    child, _ = a_run_that_holds(user)

    child.kill()

    user.finish(child)
    user.nothing_left()


def test_a_command_that_is_killed_while_the_platform_starts_leaves_nothing(user: Shell) -> None:
    user.write("holds.py", HOLDS.format(started=str(user.work / "started")))
    child = user.start("run", "holds.py")
    eventually(lambda: user.processes("squall_embedded"), within_s=20)

    child.kill()

    user.finish(child)
    user.nothing_left()


def test_a_killed_platform_ends_the_command_with_an_error_and_leaves_nothing(user: Shell) -> None:
    child, _ = a_run_that_holds(user)

    (platform,) = user.processes("-m squall_embedded")
    platform.signal(signal.SIGKILL)
    answer = user.finish(child, timeout_s=30)

    answer.refused("local_platform", "status -9")
    assert user.processes() == []
    assert user.temporary_files() == []


def test_sockets_fit_below_a_long_temporary_folder_and_go_with_a_killed_platform(user: Shell) -> None:
    user.temporary = user.temporary / ("long" * 30)
    user.temporary.mkdir()
    child, _ = a_run_that_holds(user)
    (scratch,) = (Path(os.path.realpath(path)) for path in user.temporary.glob("squall-*/tmp"))
    in_use = scratch.is_dir()

    (platform,) = user.processes("-m squall_embedded")
    platform.signal(signal.SIGKILL)
    user.finish(child, timeout_s=30)

    assert in_use
    assert not scratch.exists()


def test_what_was_killed_all_at_once_is_cleared_by_the_next_run(user: Shell) -> None:
    child, _ = a_run_that_holds(user)
    for found in user.processes():
        found.signal(signal.SIGKILL)
    user.finish(child)
    assert user.temporary_files() != []
    user.write(
        "app.py", "import squall\napp = squall.App('a')\n@app.local_entrypoint()\ndef main():\n    print('fine')\n"
    )

    assert user.squall("run", "-q", "app.py").ok().out == "fine\n"


def test_its_files_are_for_nobody_else(user: Shell) -> None:
    child, _ = a_run_that_holds(user)

    (folder,) = (file.parent for file in user.temporary.glob("*/server.json"))
    modes = {
        name: stat.S_IMODE((folder / name).stat().st_mode) for name in ("", "token", "service-token", "bus/nats.conf")
    }
    os.killpg(child.pid, signal.SIGINT)
    user.finish(child)

    assert modes == {"": 0o700, "token": 0o600, "service-token": 0o600, "bus/nats.conf": 0o600}


def test_the_bus_refuses_who_does_not_know_its_password(user: Shell) -> None:
    child, _ = a_run_that_holds(user)
    (ports,) = user.temporary.glob("squall-*/bus/run/*.ports")
    url = json.loads(ports.read_text())["nats"][0]
    host, port = url.removeprefix("nats://").split(":")

    with socket.create_connection((host, int(port)), timeout=5) as stranger:
        stranger.sendall(b'CONNECT {"verbose":false}\r\nPING\r\n')
        answer = b"".join(iter(lambda: stranger.recv(4096), b""))
    os.killpg(child.pid, signal.SIGINT)
    user.finish(child)

    assert b"Authorization Violation" in answer


# ---------------------------------------------------------------- one that stays


@pytest.fixture
def staying(user: Shell) -> Iterator[Shell]:
    """A user whose `squall up` runs; it is stopped in the end."""
    user.squall("up").ok()
    yield user
    user.squall("down")


def server_of(user: Shell) -> dict[str, object]:
    body: dict[str, object] = json.loads((user.home / "local" / "server.json").read_text())
    return body


def test_up_says_where_it_is_and_status_agrees(staying: Shell) -> None:
    server = server_of(staying)

    answer = staying.squall("status").ok()

    assert str(server["url"]) in answer.out
    assert "fsync always" in answer.out
    assert stat.S_IMODE((staying.home / "local" / "server.json").stat().st_mode) == 0o600


def test_a_second_up_finds_the_first(staying: Shell) -> None:
    before = server_of(staying)

    answer = staying.squall("up").ok()

    assert "already runs" in answer.out
    assert server_of(staying) == before


def test_commands_and_programs_find_it_by_themselves(staying: Shell) -> None:
    staying.write("app.py", DOUBLE)

    staying.squall("deploy", "app.py").ok()

    assert staying.python(CALL_DOUBLE).ok().out == "42\n"


def test_down_stops_everything_and_keeps_the_data(user: Shell) -> None:
    user.squall("up").ok()
    user.write("app.py", DOUBLE)
    user.squall("deploy", "app.py").ok()
    assert user.python(CALL_DOUBLE).ok().out == "42\n"

    user.squall("down").ok()
    left = user.processes()
    user.squall("up").ok()
    answer = user.python(CALL_DOUBLE)
    user.squall("down").ok()

    assert left == []
    assert answer.ok().out == "42\n"
    assert not (user.home / "local" / "server.json").exists()


def test_down_without_up_says_so(user: Shell) -> None:
    assert "No squall" in user.squall("down").ok().out


def test_status_without_a_server_is_a_failure(user: Shell) -> None:
    answer = user.squall("status")

    assert answer.status == 1
    assert "squall up" in answer.out


def test_a_port_in_use_is_refused(user: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        user.squall("up", "--port", port).refused("port_in_use", str(port), "--port")

    assert user.processes() == []
    assert user.squall("status").status == 1


def test_the_port_can_be_chosen(user: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    user.squall("up", "--port", port).ok()
    url = server_of(user)["url"]
    user.squall("down").ok()

    assert url == f"http://127.0.0.1:{port}"


def test_a_folder_belongs_to_one_platform(staying: Shell) -> None:
    other = staying.python(
        f"""\
        import subprocess, sys
        command = [sys.executable, "-m", "squall_embedded", "--data", {str(staying.home / "local")!r}]
        sys.exit(subprocess.run(command, stdout=subprocess.DEVNULL).returncode)
        """
    )

    assert other.status == 1
    assert "another platform uses" in other.err
    assert staying.squall("status").status == 0


def test_a_state_file_of_a_dead_platform_does_no_harm(user: Shell) -> None:
    user.squall("up").ok()
    for found in user.processes():
        found.signal(signal.SIGKILL)
    eventually(lambda: not user.processes())

    assert user.squall("status").status == 1
    user.squall("up").ok()
    assert user.squall("status").status == 0
    user.squall("down").ok()


def test_the_bus_server_is_started_again_when_it_dies(staying: Shell) -> None:
    staying.write("app.py", DOUBLE)
    staying.squall("deploy", "app.py").ok()
    assert staying.python(CALL_DOUBLE).ok().out == "42\n"
    (bus,) = staying.processes("nats-server")

    bus.signal(signal.SIGKILL)

    again = eventually(lambda: [p for p in staying.processes("nats-server") if p.pid != bus.pid], within_s=20)
    assert len(again) == 1
    assert staying.python(CALL_DOUBLE).ok().out == "42\n"


# ---------------------------------------------------------------- each service a process


def test_services_and_containers_die_with_a_supervisor_that_is_killed(user: Shell) -> None:
    user.squall("up", "--processes", timeout_s=120).ok()
    child, _ = a_run_that_holds(user)

    (supervisor,) = user.processes("-m squall_embedded")
    supervisor.signal(signal.SIGKILL)
    eventually(lambda: not [p for p in user.processes() if p.pid != child.pid], what=user.processes)

    os.killpg(child.pid, signal.SIGINT)
    assert user.finish(child).status == 130


@pytest.fixture(scope="module")
def apart() -> Iterator[Shell]:
    """A user whose services are processes: two agents, two gateways."""
    shell = Shell()
    try:
        shell.squall("up", "--processes", "--agents", "2", "--gateways", "2", timeout_s=120).ok()
        shell.write("app.py", DOUBLE)
        shell.squall("deploy", "app.py").ok()
        yield shell
        shell.squall("down").ok()
        assert shell.processes() == []
        shell.nothing_left()
    finally:
        shell.remove()


def parts(user: Shell) -> dict[str, dict[str, object]]:
    listed = server_of(user)["processes"]
    assert isinstance(listed, list)
    return {part["name"]: part for part in listed}


def test_each_service_is_a_process(apart: Shell) -> None:
    present = parts(apart)

    assert set(present) == {
        "bus", "gateway-0", "gateway-1", "gpu-agent-0", "gpu-agent-1", "scheduler", "autoscaler", "builder",
    }  # fmt: skip
    assert len({part["pid"] for part in present.values()}) == 8
    assert apart.python(CALL_DOUBLE).ok().out == "42\n"


def test_both_agents_are_machines(apart: Shell) -> None:
    rows = json.loads(apart.squall("node", "list", "--json").ok().out)

    assert sorted(row["node"] for row in rows) == ["local-0", "local-1"]


def test_each_gateway_answers(apart: Shell) -> None:
    for name in ("gateway-0", "gateway-1"):
        url = str(parts(apart)[name]["url"])
        answer = apart.python(CALL_DOUBLE, SQUALL_SERVER_URL=url, SQUALL_TOKEN=str(server_of(apart)["token"])).ok()
        assert answer.out == "42\n"


@pytest.mark.parametrize("name", ["gateway-0", "gpu-agent-1", "scheduler", "autoscaler", "builder", "bus"])
def test_a_killed_service_is_started_again(apart: Shell, name: str) -> None:
    before = int(str(parts(apart)[name]["pid"]))

    os.kill(before, signal.SIGKILL)

    def again() -> bool:
        pid = int(str(parts(apart)[name]["pid"]))
        return pid != before and process(pid) is not None

    eventually(again, within_s=30, what=f"{name} is not started again")
    assert apart.python(CALL_DOUBLE).ok().out == "42\n"


def test_a_platform_that_does_not_sync_each_write_says_so_to_clients_and_in_its_log() -> None:
    with Platform(arguments=("--sync-interval", "1s")) as platform:
        request = urllib.request.Request(
            platform.url + "/v1/info", headers={"Authorization": f"Bearer {platform.token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            durability = json.load(answer)["durability"]
        configuration = (platform.data / "bus" / "nats.conf").read_text()

        assert durability.startswith("fsync every 1s: acknowledged calls")
        assert "acknowledged_calls_can_be_lost" in platform.log()
        assert "sync_interval: 1s" in configuration


def test_a_bus_server_that_ends_again_while_it_starts_is_started_once_more(tmp_path: Path) -> None:
    starts, program = tmp_path / "starts", tmp_path / "nats-server"
    program.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] || [ "$1" = -v ] || echo start >> {starts}\n'
        f"[ -e {tmp_path / 'broken'} ] && exit 7\n"
        f'exec {Path(sys.executable).with_name("nats-server")} "$@"\n'
    )
    program.chmod(0o755)
    with Platform(processes=True, arguments=("--nats-server", str(program))) as platform:
        before = platform.part("bus")
        (tmp_path / "broken").touch()
        platform.signal("bus", signal.SIGKILL)
        eventually(lambda: starts.read_text().count("start") >= 4, within_s=20, what=starts.read_text)
        (tmp_path / "broken").unlink()

        platform.restarted(before)
        eventually(platform.ready, within_s=20)
