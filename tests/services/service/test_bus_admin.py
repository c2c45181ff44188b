"""`squall-bus` as operators use it: its users in a real server's configuration, and the streams made by one of them."""

from __future__ import annotations

import asyncio
import io
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.nats_server import NatsServer

from squall_bus import BusForbidden, BusSettings, BusUnavailable, connect
from squall_contracts import roles, topology
from squall_contracts.functions import TOKENS, TokenRecord, token_key
from squall_service.bus_admin import main


def secrets_in(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


async def test_the_printed_users_and_the_topology_make_a_bus_that_services_can_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = tmp_path / "squall.env"
    assert main(["users", "--region", "eu", "--shards", "2", "--node", "gpu-1", "--secrets", str(secrets)]) == 0
    config = capsys.readouterr().out
    passwords = secrets_in(secrets)
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
    assert not any(password in config for password in passwords.values())
    for name, password in passwords.items():
        monkeypatch.setenv(name, password)
    async with NatsServer(tmp_path / "nats", extra=config) as server:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SQUALL_")},
            "SQUALL_BUS_URL": server.url,
            "SQUALL_BUS_REGION": "eu",
            "SQUALL_BUS_SHARDS": "2",
            "SQUALL_BUS_USER": "topology",
            "SQUALL_BUS_PASSWORD": passwords["SQUALL_BUS_PASSWORD_TOPOLOGY"],
        }
        made = subprocess.run(
            [sys.executable, "-m", "squall_service.bus_admin", "topology"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        layout = topology.build("eu", 2)
        agent = BusSettings(
            url=server.url,
            user="agent-gpu-1",
            password=passwords["SQUALL_BUS_PASSWORD_AGENT_GPU_1"],
            inbox_prefix=roles.inbox_prefix(roles.AGENT, "gpu-1"),
        )
        async with connect(agent, layout) as bus:
            await bus.await_topology()
            await bus.kv("nodes").put("gpu-1", b"fact")
            with pytest.raises(BusForbidden):
                await bus.kv("nodes").put("gpu-2", b"fact")
        with pytest.raises(BusUnavailable):
            async with connect(BusSettings(url=server.url, connect_timeout_s=0.3), layout):
                pass


def test_a_node_that_is_added_leaves_the_passwords_of_the_others(tmp_path: Path) -> None:
    secrets = tmp_path / "squall.env"
    main(["users", "--node", "a", "--secrets", str(secrets)])
    before = secrets_in(secrets)
    main(["users", "--node", "a", "--node", "b", "--secrets", str(secrets)])
    after = secrets_in(secrets)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"SQUALL_BUS_PASSWORD_AGENT_B"}


def test_a_name_that_would_break_the_configuration_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["users", "--node", 'x", password: ""']) == 1
    assert "is not a name" in capsys.readouterr().err


async def test_users_in_an_account_of_a_size_have_a_limit_that_they_can_see(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = tmp_path / "squall.env"
    assert main(["users", "--shards", "1", "--max-file", "40GB", "--secrets", str(secrets)]) == 0
    config, passwords = capsys.readouterr().out, secrets_in(secrets)
    for name, password in passwords.items():
        monkeypatch.setenv(name, password)
    password = passwords["SQUALL_BUS_PASSWORD_TOPOLOGY"]
    async with NatsServer(tmp_path / "nats", extra=config, max_file="100GB") as server:
        prefix = roles.inbox_prefix(roles.TOPOLOGY)
        settings = BusSettings(url=server.url, user="topology", password=password, inbox_prefix=prefix)
        async with connect(settings, topology.build("local", 1)) as bus:
            await bus.ensure_topology()
            assert (await bus.store_info()).limit_bytes == 40 << 30
    assert main(["users", "--shards", "4", "--max-file", "40GB"]) == 1
    assert "reserve 24 GB" in capsys.readouterr().err


async def test_a_token_is_made_known_once_and_only_its_hash_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        NatsServer(tmp_path / "nats") as server,
        connect(BusSettings(url=server.url), topology.build()) as bus,
    ):
        await bus.ensure_topology()
        monkeypatch.setenv("SQUALL_BUS_URL", server.url)
        for _ in range(2):
            monkeypatch.setattr("sys.stdin", io.StringIO("sq-" + "x" * 32 + "\n"))
            assert await asyncio.to_thread(main, ["token", "--name", "operator", "--stdin"]) == 0
        [entry] = await bus.kv(TOKENS).entries()

    assert entry.key == token_key(b"sq-" + b"x" * 32)
    assert TokenRecord.decode(entry.value).name == "operator"


async def test_a_short_token_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))

    assert await asyncio.to_thread(main, ["token", "--name", "operator", "--stdin"]) == 1
    assert "32 characters" in capsys.readouterr().err
