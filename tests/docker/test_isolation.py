"""Containers as black boxes: what code in one can do to the host, to the control plane and to others (T21 to T33, T47).

The same attacks run on the process backend and must succeed there, so that nobody takes it for isolation. Bombs are
only thrown where something contains them.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.docker import outside
from tests.docker.outside import PORT, PRIVATE, PUBLIC, SECOND_PUBLIC
from tests.docker.sandboxes import sandbox_backend, shared_base_root
from tests.sdk.runner.containers import Workshop, call, descendants_of, value
from tests.support.eventually import eventually

from squall.spec import Resources
from squall_gpu_agent.backend import Container, Lost, Output
from squall_gpu_agent.backends.process import ProcessBackend, ProcessSettings

pytestmark = [pytest.mark.slow, pytest.mark.root]

ATTACKS = (Path(__file__).parent / "attacks.py").read_text()


@pytest.fixture
async def sandboxes(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Workshop]:
    backend = sandbox_backend(tmp_path / "sandbox", shared_base_root(tmp_path_factory), processes=64, open_files=256)
    yield Workshop(backend, tmp_path)
    await backend.close()


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Workshop]:
    backend = ProcessBackend(ProcessSettings(data_dir=tmp_path / "process"))
    yield Workshop(backend, tmp_path)
    await backend.close()


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / f"canary-{secrets.token_hex(8)}"
    path.write_text("of another workspace")
    return path


@pytest.fixture
def device() -> Iterator[str]:
    """What stands for a GPU that was assigned to nobody here."""
    path = f"/dev/nvidia-{secrets.token_hex(4)}"
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    yield path
    os.unlink(path)


@pytest.fixture
def listeners() -> Iterator[list[tuple[str, Any]]]:
    """Of the host: on its loopback, on all of its addresses, and without any address."""
    loopback, everywhere = socket.create_server(("127.0.0.1", 0)), socket.create_server(("", 0))
    abstract = socket.socket(socket.AF_UNIX)
    name = f"\0squall-{secrets.token_hex(8)}"
    abstract.bind(name)
    abstract.listen()
    port = everywhere.getsockname()[1]
    yield [
        ("AF_INET", ["127.0.0.1", loopback.getsockname()[1]]),
        ("AF_INET", [_own_address(), port]),
        ("AF_INET6", ["::ffff:127.0.0.1", port]),
        ("AF_UNIX", name),
    ]
    for server in (loopback, everywhere, abstract):
        server.close()


METADATA = [
    ("AF_INET", ["169.254.169.254", 80]),
    ("AF_INET", ["2852039166", 80]),
    ("AF_INET", ["0xa9fea9fe", 80]),
    ("AF_INET6", ["::ffff:169.254.169.254", 80]),
    ("AF_INET6", ["fd00:ec2::254", 80]),
]


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # sends nothing: it only chooses an address
        except OSError:
            return "127.0.0.1"
        return str(sock.getsockname()[0])


async def attacker(workshop: Workshop, **wanted: Any) -> Container:
    return await workshop.start(ATTACKS, "attack", **wanted)


async def got(container: Container, name: str, *args: Any) -> list[str]:
    end = await call(container, name, *args)
    assert isinstance(end, Output), end
    return list(value(end))


@pytest.mark.parametrize("use_template", [False, True])
async def test_nothing_of_the_host_is_within_reach_of_a_sandbox(
    sandboxes: Workshop, canary: Path, device: str, listeners: list[tuple[str, Any]], use_template: bool
) -> None:
    container = await attacker(sandboxes, use_template=use_template)
    assert container.how == ("fork" if use_template else "fresh"), container.why
    found = {
        "T21": await got(container, "environment"),
        "T22": await got(container, "network", listeners),
        "T23": await got(container, "network", METADATA),
        "T26": await got(container, "files", str(canary)),
        "T27": await got(container, "kernel"),
        "T27 clones": await got(container, "clones"),
        "T28, T47": await got(container, "devices"),
        "T29": await got(container, "forks", 100),
        "T31": await got(container, "disk", 700),
        "T32": await got(container, "descriptors", 257),
    }
    assert {name: what for name, what in found.items() if what} == {}


async def test_all_of_it_is_within_reach_of_a_process(
    processes: Workshop, canary: Path, device: str, listeners: list[tuple[str, Any]]
) -> None:
    container = await attacker(processes)
    found = {
        "T21": await got(container, "environment"),
        "T22": await got(container, "network", listeners),
        "T26": await got(container, "files", str(canary)),
        "T27": await got(container, "kernel"),
        "T27 clones": await got(container, "clones"),
        "T28": await got(container, "devices"),
        "T29": await got(container, "forks", 100),
        "T31": await got(container, "disk", 700),
        "T32": await got(container, "descriptors", 257),
    }
    assert [name for name, what in found.items() if not what] == []
    assert len(found["T22"]) == len(listeners)
    assert f"reads {canary}" in found["T26"]
    assert device in found["T28"]


async def test_sandboxes_do_not_reach_each_other(sandboxes: Workshop, processes: Workshop) -> None:
    for workshop, reached in ((sandboxes, False), (processes, True)):
        one, two = await attacker(workshop), await attacker(workshop)
        port, name = value(await call(one, "listen"))
        targets = [("AF_INET", ["127.0.0.1", port]), ("AF_INET", [name, port]), ("AF_INET", [_own_address(), port])]
        assert bool(await got(two, "network", targets)) is reached


def at(*addresses: str) -> list[tuple[str, list[Any]]]:
    return [("AF_INET", [address, PORT]) for address in addresses]


EVERYWHERE = at(PUBLIC, SECOND_PUBLIC, PRIVATE, outside.METADATA, outside.METADATA_OF_AZURE)


@pytest.mark.parametrize("use_template", [False, True])
async def test_a_sandbox_reaches_public_addresses_and_no_others(sandboxes: Workshop, use_template: bool) -> None:
    with outside.outside():
        container = await attacker(sandboxes, use_template=use_template)
        assert container.how == ("fork" if use_template else "fresh"), container.why
        reached = await got(container, "network", EVERYWHERE)
        assert reached == [f"reached {where}" for _, where in at(PUBLIC, SECOND_PUBLIC)]


async def test_an_allow_list_is_all_that_a_sandbox_reaches(sandboxes: Workshop) -> None:
    with outside.outside():
        container = await attacker(
            sandboxes, isolation="sandbox", outbound_cidr_allowlist=(f"{PUBLIC}/32", f"{PRIVATE}/32")
        )
        # What the operator refuses, no function can allow.
        assert await got(container, "network", EVERYWHERE) == [f"reached {where}" for _, where in at(PUBLIC)]


async def test_a_sandbox_with_a_blocked_network_has_only_its_own_loopback(sandboxes: Workshop) -> None:
    with outside.outside():
        container = await attacker(sandboxes, isolation="sandbox", block_network=True)
        assert await got(container, "network", EVERYWHERE) == []
        assert await got(container, "interfaces") == ["lo"]


async def test_sandboxes_with_a_network_do_not_reach_each_other(sandboxes: Workshop) -> None:
    with outside.outside():
        one, two = await attacker(sandboxes), await attacker(sandboxes)
        port, _ = value(await call(one, "listen"))
        address = value(await call(one, "address", PUBLIC))
        assert address.startswith("100.72.")
        assert await got(one, "network", [("AF_INET", [address, port])]) != []
        assert await got(two, "network", [("AF_INET", [address, port])]) == []


@pytest.mark.parametrize("how", ["anonymous", "/tmp", "/dev/shm"])
async def test_a_memory_bomb_ends_its_own_container_as_out_of_memory(sandboxes: Workshop, how: str) -> None:
    neighbour = await attacker(sandboxes)
    container = await attacker(sandboxes, resources=Resources(memory_limit_mib=96))
    end = await call(container, "fill_memory", 250, how)
    assert isinstance(end, Lost), end
    assert (end.exit.oom, end.exit.reason) == (True, "killed: out of memory (limit 96 MiB)")
    assert await got(neighbour, "descriptors", 257) == []


async def test_a_full_disk_is_told_with_its_limits(sandboxes: Workshop) -> None:
    container = await sandboxes.start(
        "import os\ndef f():\n    os.posix_fallocate(os.open('/tmp/x', os.O_RDWR | os.O_CREAT), 0, 700 << 20)"
    )
    end = await call(container)
    assert "No space left on device (limits of this container: files 512 MiB" in getattr(end, "message", "")


@pytest.mark.parametrize("what", ["junk", "huge", "path"])
async def test_a_forged_frame_ends_its_own_container_and_nothing_else(sandboxes: Workshop, what: str) -> None:
    neighbour, container = await attacker(sandboxes), await attacker(sandboxes)
    end = await call(container, "forge", what, call="fc-evil")
    assert isinstance(end, Lost)
    assert "broke the protocol" in end.exit.reason
    assert await got(neighbour, "descriptors", 257) == []


async def test_a_frame_about_somebody_elses_call_is_dropped(sandboxes: Workshop) -> None:
    neighbour, container = await attacker(sandboxes), await attacker(sandboxes)
    async with asyncio.TaskGroup() as group:
        other = group.create_task(call(neighbour, "descriptors", 257, call="fc-of-somebody-else"))
        mine = group.create_task(call(container, "forge", "other", call="fc-mine"))
    assert value(mine.result()) == "still here"
    assert value(other.result()) == []


async def test_what_a_sandbox_started_ends_with_it(sandboxes: Workshop) -> None:
    container = await sandboxes.start(
        """
        import os, subprocess
        def f():
            for command in ("sleep 601", "setsid sleep 601 &", "setsid setsid sleep 601 &"):
                subprocess.Popen(["sh", "-c", command], start_new_session=True)
            return os.getpid()
        """
    )
    assert value(await call(container)) == 2
    launcher = sandboxes.backend._open_parts.launcher.pid  # type: ignore[attr-defined]
    await eventually(lambda: len(descendants_of(launcher)) >= 5)
    container.kill()
    await container.wait()
    await eventually(lambda: descendants_of(launcher) == [])
