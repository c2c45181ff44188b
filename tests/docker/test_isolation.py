"""Containers as black boxes: what code in one can do to the host, to the control plane and to others (T21 to T33, T47).

The same attacks run on the process backend and must succeed there, so that nobody takes it for isolation. Bombs are
only thrown where something contains them.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.docker import outside
from tests.docker.outside import PORT, PRIVATE, PUBLIC, SECOND_PUBLIC
from tests.docker.sandboxes import (
    ISOLATING,
    docker_backend,
    gvisor_backend,
    isolating_backend,
    sandbox_backend,
    shared_base_root,
)
from tests.sdk.runner.containers import Workshop, call, descendants_of, value
from tests.support.eventually import eventually

from squall.spec import Resources
from squall_gpu_agent.backend import CommandFailed, Container, Failed, FailureKind, Lost, Output, StartFailed
from squall_gpu_agent.backends.process import ProcessBackend, ProcessSettings
from squall_gpu_agent.results import start_error

pytestmark = [pytest.mark.slow, pytest.mark.root]

ATTACKS = (Path(__file__).parent / "attacks.py").read_text()


@pytest.fixture
async def sandboxes(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Workshop]:
    backend = sandbox_backend(tmp_path / "sandbox", shared_base_root(tmp_path_factory), processes=64, open_files=256)
    yield Workshop(backend, tmp_path)
    await backend.close()


@pytest.fixture
async def gvisor(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Workshop]:
    root = shared_base_root(tmp_path_factory)
    backend = gvisor_backend(tmp_path / "gvisor", root, processes=64, open_files=256)
    yield Workshop(backend, tmp_path)  # type: ignore[arg-type]
    await backend.close()


@pytest.fixture
async def docker(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Workshop]:
    root = shared_base_root(tmp_path_factory)
    backend = docker_backend(tmp_path / "docker", root, processes=64, open_files=256)
    yield Workshop(backend, tmp_path)  # type: ignore[arg-type]
    await backend.close()


@pytest.fixture(params=ISOLATING)
async def isolated(
    request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Workshop]:
    """Each backend that isolates, as far as this machine has it."""
    root = shared_base_root(tmp_path_factory)
    backend = isolating_backend(request.param, tmp_path / "data", root, processes=64, open_files=256)
    yield Workshop(backend, tmp_path)  # type: ignore[arg-type]
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


async def everything(container: Container, canary: Path, listeners: list[Any], own_kernel: bool = False) -> Any:
    """What each attack got that ends nothing."""
    return {
        "T21": await got(container, "environment"),
        "T22": await got(container, "network", listeners),
        "T23": await got(container, "network", METADATA),
        "T26": await got(container, "files", str(canary)),
        "T27": await got(container, "kernel", own_kernel),
        "T28, T47": await got(container, "devices", own_kernel),
        "T31": await got(container, "disk", 700),
        "T32": await got(container, "descriptors", 257),
    }


@pytest.mark.parametrize("of", ["a template", "a bare interpreter", "nothing"])
async def test_nothing_of_the_host_is_within_reach_of_a_sandbox(
    sandboxes: Workshop, canary: Path, device: str, listeners: list[tuple[str, Any]], of: str
) -> None:
    """Whatever it is a fork of."""
    files = {"root/app.py": ATTACKS, **({"usr/lib/of-the-bundle": ""} if of == "nothing" else {})}
    container = await sandboxes.start(files, "attack", use_template=of == "a template")
    assert container.how == ("fork" if of == "a template" else "fresh"), container.why
    assert container.forked is (of != "nothing")  # type: ignore[attr-defined]
    found = await everything(container, canary, listeners)
    found["T27 clones"] = await got(container, "clones")
    found["T29"] = await got(container, "forks", 100)
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.gvisor
@pytest.mark.parametrize("restored", [False, True])
async def test_nothing_of_the_host_is_within_reach_of_gvisor(
    gvisor: Workshop, canary: Path, device: str, listeners: list[tuple[str, Any]], restored: bool
) -> None:
    request = gvisor.request(ATTACKS, "attack", use_template=restored)
    if restored:
        await gvisor.backend.template(request, gvisor.logs.append)
    container = await gvisor.launch(request)
    assert container.how == ("restore" if restored else "fresh"), container.why
    found = await everything(container, canary, listeners, own_kernel=True)
    if restored:  # what it was forked from, in its own kernel, of which it has a copy: variables without id and token
        own = ["reads /proc/1/environ", "reads /proc/1/maps"]
        found["T21"] = [what for what in found["T21"] if what not in own]
    assert {name: what for name, what in found.items() if what} == {}
    # What stands between its kernel and the host's: no part of it is root out here, and what runs its code can nothing.
    launcher = gvisor.backend._open_parts.launcher.pid  # type: ignore[attr-defined]
    parts = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in descendants_of(launcher)}
    assert {b"runsc-gofer", b"runsc-sandbox"} <= set(parts.values())
    for pid, name in parts.items():
        status = Path(f"/proc/{pid}/status").read_text()
        assert int(re.findall(r"Uid:\s+(\d+)", status)[0]) >= 0x70000000, name
        if name in (b"runsc-gofer", b"runsc-sandbox"):
            assert re.findall(r"(?:NoNewPrivs|Seccomp):\s+(\d)", status) == ["1", "2"]
    # Its kernel needs a process of the host for each of its own.
    end = await call(container, "forks", 100)
    assert isinstance(end, Lost)
    assert end.exit.reason == "ended: more processes than gVisor may have here (limit 64)"


@pytest.mark.docker
async def test_nothing_of_the_host_is_within_reach_of_an_engines_container(
    docker: Workshop, canary: Path, device: str, listeners: list[tuple[str, Any]]
) -> None:
    container = await attacker(docker)
    found = await everything(container, canary, listeners)
    found["T27 clones"] = await got(container, "clones")
    found["T29"] = await got(container, "forks", 100)
    assert {name: what for name, what in found.items() if what} == {}
    assert os.stat(f"/proc/{container.pid}/environ").st_uid == 0  # the first process is closed to inspection


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


async def test_sandboxes_do_not_reach_each_other(isolated: Workshop, processes: Workshop) -> None:
    for workshop, reached in ((isolated, False), (processes, True)):
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


async def test_sandboxes_of_two_platforms_of_one_machine_have_a_network_each(
    sandboxes: Workshop, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = sandbox_backend(tmp_path / "other", shared_base_root(tmp_path_factory))
    with outside.outside():
        workshops = [sandboxes, Workshop(other, tmp_path / "its")]  # type: ignore[arg-type]
        containers = [await attacker(workshop) for workshop in workshops]
        for container in containers:
            assert await got(container, "network", at(PUBLIC)) == [f"reached {where}" for _, where in at(PUBLIC)]
        await other.close()


async def test_an_allow_list_is_all_that_a_sandbox_reaches(isolated: Workshop) -> None:
    with outside.outside():
        container = await attacker(
            isolated, isolation="sandbox", outbound_cidr_allowlist=(f"{PUBLIC}/32", f"{PRIVATE}/32")
        )
        # What the operator refuses, no function can allow.
        assert await got(container, "network", EVERYWHERE) == [f"reached {where}" for _, where in at(PUBLIC)]


async def test_a_sandbox_with_a_blocked_network_has_only_its_own_loopback(isolated: Workshop) -> None:
    with outside.outside():
        container = await attacker(isolated, isolation="sandbox", block_network=True)
        assert await got(container, "network", EVERYWHERE) == []
        assert await got(container, "interfaces") == ["lo"]


async def test_sandboxes_with_a_network_do_not_reach_each_other(isolated: Workshop) -> None:
    with outside.outside():
        one, two = await attacker(isolated), await attacker(isolated)
        port, _ = value(await call(one, "listen"))
        address = value(await call(one, "address", PUBLIC))
        assert address.startswith("100.72.")
        assert await got(one, "network", [("AF_INET", [address, port])]) != []
        assert await got(two, "network", [("AF_INET", [address, port])]) == []


@pytest.mark.parametrize("how", ["anonymous", "/tmp", "/dev/shm"])
async def test_a_memory_bomb_ends_its_own_container_as_out_of_memory(sandboxes: Workshop, how: str) -> None:
    await bombed(sandboxes, how)


async def test_so_it_does_with_every_backend_that_isolates(isolated: Workshop) -> None:
    await bombed(isolated, "anonymous")


async def bombed(workshop: Workshop, how: str) -> None:
    neighbour = await attacker(workshop)
    container = await attacker(workshop, resources=Resources(memory_limit_mib=96))
    end = await call(container, "fill_memory", 250, how)
    assert isinstance(end, Lost), end
    assert (end.exit.oom, end.exit.reason) == (True, "killed: out of memory (limit 96 MiB)")
    assert await got(neighbour, "descriptors", 257) == []


async def test_a_program_that_is_killed_for_want_of_memory_is_told_in_the_log_and_the_error_of_its_call(
    sandboxes: Workshop,
) -> None:
    source = """
        import subprocess, sys
        BOMB = "kept = bytearray(250 << 20)\\nfor place in range(0, len(kept), 4096): kept[place] = 1"
        def f(check):
            return subprocess.run([sys.executable, "-c", BOMB], check=check).returncode
    """
    container = await sandboxes.start(source, resources=Resources(memory_limit_mib=96))
    assert value(await call(container, False)) == -9
    told = (
        "out of memory: 1 process that it had started was killed by the kernel; the limit of this container is 96 MiB"
    )
    lines = [log for log in sandboxes.logs if log.stream == "system" and "out of memory" in log.text]
    assert [log.text for log in lines] == [f"warning: {told}, files in memory included\n"]
    assert lines[0].call is not None
    end = await call(container, True)
    assert isinstance(end, Failed), end
    assert (end.type_name, told in end.message, told in end.traceback) == ("CalledProcessError", True, True)
    quiet = await sandboxes.start("def f(): return 1")
    assert value(await call(quiet)) == 1
    assert len([log for log in sandboxes.logs if "out of memory" in log.text]) == 2


async def test_a_full_disk_is_told_with_its_limits(isolated: Workshop) -> None:
    container = await isolated.start(
        "import os\ndef f():\n    os.posix_fallocate(os.open('/tmp/x', os.O_RDWR | os.O_CREAT), 0, 700 << 20)"
    )
    end = await call(container)
    assert re.search(r"No space left on device \(limits of this container: .* 512 MiB", getattr(end, "message", ""))
    assert isinstance(end, Failed)
    assert end.kind == FailureKind.USER, "it holds nothing: the file was to be larger than the disk"


FULL = """
import os, tempfile

def fill(path, over=8 << 20):
    with open(path, "wb") as file:
        disk = os.statvfs(os.path.dirname(path))
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - (8 << 20))
        file.seek(0, os.SEEK_END)
        file.write(bytes(over + (8 << 20)))

def caught():
    try:
        fill("/tmp/much")
    except OSError as error:
        os.unlink("/tmp/much")
        return type(error).__name__, error.errno

def removed():
    with tempfile.TemporaryDirectory() as folder:
        fill(folder + "/much")

def shared():
    fill("/dev/shm/much")

def other():
    raise OSError(28, "too many watches")

def f(what):
    return globals()[what]()

def kept():
    fill("/tmp/much")

def result():
    os.truncate("/tmp/much", 0)
    fill("/run/squall/scratch/much", -(4 << 20))
    return bytes(32 << 20)
"""


async def test_a_disk_of_more_than_is_kept_in_memory_is_on_disk_and_ends_there(sandboxes: Workshop) -> None:
    await on_disk(sandboxes, use_template=True)


@pytest.mark.gvisor
async def test_so_is_that_of_gvisor(gvisor: Workshop) -> None:
    await on_disk(gvisor, use_template=False)


async def on_disk(workshop: Workshop, use_template: bool) -> None:
    source = """
        import os
        def f(mib):
            with open("/root/much", "wb") as file:
                for _ in range(mib):
                    file.write(bytes(1 << 20))
                os.fsync(file.fileno())
            return os.stat("/root/much").st_blocks >> 11
    """
    resources = Resources(memory_limit_mib=256, ephemeral_disk_mib=640)
    container = await workshop.start(source, resources=resources, use_template=use_template)
    assert container.how == ("fork" if use_template else "fresh"), container.why
    assert value(await call(container, 560)) == 560, "it does not count as memory"
    end = await call(container, 700)
    assert isinstance(end, Failed), end
    assert (end.kind, end.disk and end.disk.limit_mib) == (FailureKind.DISK_FULL, 640), end.message
    with pytest.raises(
        StartFailed, match=r"no room for ephemeral_disk=3145728: \d+ MiB of this machine's disk are free"
    ):
        await workshop.start("def f(): pass", resources=Resources(ephemeral_disk_mib=3 << 20))


async def test_a_disk_that_is_full_while_a_container_starts_is_named_with_its_limit(isolated: Workshop) -> None:
    source = "with open('/root/much', 'wb') as file:\n    file.write(bytes(40 << 20))\ndef f(): pass"
    with pytest.raises(StartFailed, match=r"disk of its container .*16 MiB.*ephemeral_disk=") as caught:
        await isolated.start(source, resources=Resources(ephemeral_disk_mib=16))
    error = start_error(caught.value)
    assert (error["kind"], error["phase"], error["data"]["limit_mib"]) == ("disk_full", "import", 16)


async def test_a_full_disk_is_a_failure_of_its_own_and_only_where_it_is_the_containers(isolated: Workshop) -> None:
    container = await isolated.start(FULL)
    assert value(await call(container, "caught")) == ("OSError", 28), "code that looks after it sees no difference"
    for what in ("shared", "other"):
        end = await call(container, what)
        assert isinstance(end, Failed), end
        assert (end.kind, end.type_name) == (FailureKind.USER, "OSError"), what
        assert "limits of this container" in end.message
    for what, still in (("removed", False), ("kept", True), ("result", False)):
        end = await call(container, what)
        assert isinstance(end, Failed), end
        assert (end.kind, end.type_name) == (FailureKind.DISK_FULL, "OSError"), f"{what}: {end.message}"
        assert end.disk is not None
        assert (end.disk.limit_mib, end.disk.still) == (512, still)
        assert "512 MiB" in end.message
        assert "No space left on device" in end.message
    assert list(container.incoming.parent.glob("scratch/payload-*")) == [], "half a result stays nowhere"


@pytest.mark.parametrize("what", ["junk", "huge", "path"])
async def test_a_forged_frame_ends_its_own_container_and_nothing_else(sandboxes: Workshop, what: str) -> None:
    neighbour, container = await attacker(sandboxes), await attacker(sandboxes)
    end = await call(container, "forge", what, call="fc-evil")
    assert isinstance(end, Lost)
    assert "broke the protocol" in end.exit.reason
    assert await got(neighbour, "descriptors", 257) == []


async def test_a_frame_about_somebody_elses_call_is_dropped(isolated: Workshop) -> None:
    neighbour, container = await attacker(isolated), await attacker(isolated)
    async with asyncio.TaskGroup() as group:
        other = group.create_task(call(neighbour, "descriptors", 257, call="fc-of-somebody-else"))
        mine = group.create_task(call(container, "forge", "other", call="fc-mine"))
    assert value(mine.result()) == "still here"
    assert value(other.result()) == []


async def test_a_command_has_the_rights_and_limits_of_its_container_and_no_more(isolated: Workshop) -> None:
    """With `container exec`: the same attacks, by a second process that came from outside."""
    container = await attacker(isolated, env={"SECRET_OF_IT": "known"})
    assert container.inside is not None
    own_kernel = isolated.backend.name == "gvisor"  # whose filter holds for its main program only
    attacks = "app.devices(True)" if own_kernel else "app.kernel()"
    code = f"import os, app; print(os.environ['SECRET_OF_IT'], os.getcwd(), {attacks}, app.descriptors(257))"
    status, printed = await execute(container, ["python3", "-c", code])
    assert (os.waitstatus_to_exitcode(status or 0), printed) == (0, "known /root [] []\n")
    status, printed = await execute(container, ["sh", "-c", "echo to stderr >&2; exit 7"])
    assert (os.waitstatus_to_exitcode(status or 0), printed) == (7, "to stderr\n")
    if isolated.backend.name != "sandbox":
        status, printed = await execute(container, ["nothing-like-it"])
        assert (os.waitstatus_to_exitcode(status or 0) > 125, "nothing-like-it" in printed) == (True, True)
    else:
        with pytest.raises(CommandFailed, match="nothing-like-it"):
            await execute(container, ["nothing-like-it"])
    running = asyncio.get_running_loop().create_future()
    with open(os.devnull, "w") as null:
        pid = await container.inside.start(["sleep", "601"], [null.fileno()] * 2, running.set_result)
    assert os.getpgid(pid) == pid
    container.kill()
    await container.wait()
    async with asyncio.timeout(10):
        assert await running != 0


async def execute(container: Container, words: list[str]) -> tuple[int | None, str]:
    """Its wait status, and what it printed."""
    assert container.inside is not None
    read, write = os.pipe()
    ended = asyncio.get_running_loop().create_future()
    with open(read, "rb") as output:
        try:
            await container.inside.start(words, [write, write], ended.set_result)
        finally:
            os.close(write)
        async with asyncio.timeout(20):
            return await ended, output.read().decode()


async def test_a_limit_of_cores_holds_from_ready_on(sandboxes: Workshop) -> None:
    container = await attacker(sandboxes, resources=Resources(cpu=0.25, cpu_limit=0.5))
    group = container.slot.group.folders["cpu"]  # type: ignore[attr-defined]
    names = ("cpu.max",) if (group / "cpu.max").exists() else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    assert " ".join((group / name).read_text().strip() for name in names) == "50000 100000"


async def test_what_a_sandbox_started_ends_with_it(sandboxes: Workshop) -> None:
    container = await sandboxes.start(
        """
        import os, subprocess
        def f():
            for command in ("sleep 601", "sleep 601 &", "(sleep 601 &) &"):
                subprocess.Popen(["sh", "-c", command], start_new_session=True)
            return os.getpid()
        """
    )
    assert value(await call(container)) == 2
    launcher = sandboxes.backend._open_parts.launcher.pid  # type: ignore[attr-defined]
    await eventually(lambda: len(sleepers(launcher)) == 3)
    container.kill()
    await container.wait()
    await eventually(lambda: sleepers(launcher) == [])
    for bare in sandboxes.backend._bare.all():  # type: ignore[attr-defined]
        bare.retire()
    await eventually(lambda: descendants_of(launcher) == [])


def sleepers(launcher: int) -> list[int]:
    return [pid for pid in descendants_of(launcher) if command_of(pid) == "sleep 601"]


def command_of(pid: int) -> str:
    try:
        return " ".join(Path(f"/proc/{pid}/cmdline").read_text().split("\0")).strip()
    except OSError:
        return ""
