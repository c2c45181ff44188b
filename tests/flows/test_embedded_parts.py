"""Pieces of the embedded platform that need no platform: restarts, its command line, addresses, errors of the bus."""

from __future__ import annotations

import socket
import tempfile
from itertools import accumulate, repeat
from pathlib import Path

import pytest

from squall.errors import PortInUseError, ServerTooOldError
from squall_embedded import addresses, configuring
from squall_embedded.bus_program import BusProgram, too_old, version
from squall_embedded.restarts import MAX_DELAY_S, STABLE_S, Restarts
from squall_embedded.settings import parse
from squall_embedded.site import Site
from squall_embedded.state import MAX_SCRATCH_PATH, clear_scratch, use_scratch


def test_a_part_that_keeps_ending_is_started_later_and_later_up_to_a_bound() -> None:
    ends = accumulate(repeat(0.5, 10), lambda restarts, ran_for_s: restarts.after_end(ran_for_s), initial=Restarts())

    delays = [restarts.delay_s for restarts in ends]

    assert delays[:5] == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == MAX_DELAY_S


def test_a_part_that_ran_for_long_is_started_again_at_once() -> None:
    assert Restarts(in_a_row=9).after_end(STABLE_S).delay_s == 0.1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--data", "x", "--agents", "2"],
        ["--data", "x", "--gateways", "2"],
        ["--data", "x", "--processes", "--agents", "0"],
        ["--data", "x", "--processes", "--agents", "many"],
        ["--data", "x", "--port", "70000"],
        ["--data", "x", "--sync-interval", "never"],
        ["--data", "x", "--sync-interval", "0s"],
    ],
)
def test_a_command_line_that_makes_no_sense_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(arguments)

    assert caught.value.code == 2


def test_the_state_file_is_in_the_folder_unless_told_otherwise(tmp_path: Path) -> None:
    assert parse(["--data", str(tmp_path)]).state_file == tmp_path / "server.json"
    assert parse(["--data", str(tmp_path), "--state-file", "/x/y.json"]).state_file == Path("/x/y.json")


def test_a_cluster_of_bus_servers_needs_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--data", "/x", "--processes", "--bus-servers", "3"]).bus_names == ("bus", "bus-1", "bus-2")
    with pytest.raises(SystemExit):
        parse(["--data", "/x", "--bus-servers", "3"])
    assert "needs --processes" in capsys.readouterr().err


@pytest.mark.parametrize("parents", [0, 10])
def test_temporary_files_go_with_the_folder_also_when_its_path_is_too_long_for_sockets(
    tmp_path: Path, parents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    data = Path(tempfile.mkdtemp(dir="/tmp" if not parents else tmp_path)).joinpath(*["a-long-name"] * parents)
    data.mkdir(parents=True, exist_ok=True)
    use_scratch(data)
    scratch = parse(["--data", str(data)]).scratch
    (scratch / "file").touch()
    told = (tempfile.gettempdir(), scratch.is_relative_to(data), len(str(scratch)) <= MAX_SCRATCH_PATH)

    clear_scratch(data)

    assert told == (str(scratch), not parents, True)
    assert not scratch.exists()
    assert not (data / "tmp").is_symlink()
    if not parents:
        data.rmdir()


def test_a_port_that_is_taken_is_refused_and_a_free_one_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with addresses.Ports() as ports:
            with pytest.raises(PortInUseError, match=str(port)):
                ports.choose("127.0.0.1", port)
            assert ports.choose("127.0.0.1", 0) not in (0, port)


def test_a_port_is_its_services_alone_also_while_nothing_listens_there() -> None:
    with addresses.Ports() as ports:
        port = ports.choose("127.0.0.1", 0)
        for _ in range(2):  # a service, and after its end the next one at its address
            with socket.create_server(("127.0.0.1", port)) as service:
                socket.create_connection(("127.0.0.1", port)).close()
                service.accept()[0].close()
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))

    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://127.0.0.1:80"), ("::1", "http://[::1]:80")],
)
def test_clients_of_this_machine_get_an_address_that_they_can_reach(host: str, url: str) -> None:
    assert addresses.url(host, 80) == url


def fake_server(folder: Path, script: str) -> Path:
    """A program that stands where nats-server would."""
    program = folder / "nats-server"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def test_a_server_that_cannot_read_our_settings_is_too_old(tmp_path: Path) -> None:
    script = (
        'case "$1" in --version) echo "nats-server: v2.9.10";; *) echo "unknown field sync_interval" >&2; exit 1;; esac'
    )
    program = BusProgram(tmp_path, 4222, fake_server(tmp_path, script))
    process = program.start()
    status = process.wait(10)

    error = program.why_it_ended(status)

    assert isinstance(error, ServerTooOldError)
    assert "2.9.10" in error.message
    assert "2.15.0" in error.hint


def test_a_server_that_ends_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    script = 'case "$1" in --version) echo "nats-server: v2.15.1";; *) echo "disk on fire" >&2; exit 3;; esac'
    program = BusProgram(tmp_path, 4222, fake_server(tmp_path, script))

    error = program.why_it_ended(program.start().wait(10))

    assert "status 3" in error.message
    assert "disk on fire" in error.message


def test_the_version_of_a_program_that_is_none_is_unknown(tmp_path: Path) -> None:
    assert version(tmp_path / "missing") == ()
    assert version(fake_server(tmp_path, "exit 1")) == ()


def test_the_error_for_an_old_server_names_both_versions() -> None:
    error = too_old(Path("/usr/bin/nats-server"), (2, 9, 10))

    assert "2.9.10" in error.message
    assert "Run nats-server 2.15.0 or newer" in error.hint


@pytest.mark.parametrize(
    ("named", "variable", "lacking", "backend", "formats"),
    [
        ("", "", "", "both", "needed"),
        ("", "", "they need root", "both", None),
        ("", "process", "", "process", None),
        ("", "sandbox", "", "sandbox", "layers"),
        ("process", "sandbox", "", "process", None),
        ("both", "process", "", "both", "needed"),
    ],
)
def test_the_backend_is_what_was_named_else_both(
    named: str, variable: str, lacking: str, backend: str, formats: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SQUALL_GPU_AGENT_BACKEND", raising=False)
    if variable:
        monkeypatch.setenv("SQUALL_GPU_AGENT_BACKEND", variable)
    monkeypatch.setattr(configuring.machine, "lacking", lambda: lacking)
    site = Site(
        settings=parse(["--data", "/x", *(["--backend", named] if named else [])]),
        bus=lambda role, node: pytest.fail("not asked for"),
        ports=(1,),
        token="",
        service_token="",
        secrets_key="",
    )

    assert configuring.keywords("gpu-agent", site)["backend"] == backend
    assert configuring.keywords("builder", site).get("formats") == formats
