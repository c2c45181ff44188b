"""What images and commands of users may make of the agent: nothing on the host's side, or without limit."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.sdk.runner.containers import Workshop

from squall_gpu_agent.backend import Root
from squall_gpu_agent.backends import sdk_files
from squall_gpu_agent.backends.docker.container import DockerContainer, Placed
from squall_gpu_agent.backends.docker.engine import Engine
from squall_gpu_agent.backends.docker.inside import fill_home
from squall_gpu_agent.backends.docker.wanted import DockerWanted, Limits
from squall_gpu_agent.backends.sandbox import first, launcher
from squall_gpu_agent.backends.sandbox.slots import LauncherLink
from squall_gpu_agent.backends.sandbox.words import FromLauncher
from squall_gpu_agent.runner_link import RunnerLink
from squall_runner.frames import Frame

LIMITS = Limits(memory_mib=64, processes=8, open_files=64, writable_mib=8, shared_memory_mib=8)


@pytest.mark.parametrize("letter", ["é", "\\", "\N{GRINNING FACE}", "\x01"])
def test_a_program_with_a_long_name_does_not_end_the_launcher(letter: str) -> None:
    told, says = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with told, says:
        told.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        first.say(says, {"error": f"{letter * 2000!r} cannot be started", "ticket": 7})
        said, pid = launcher._read(told)
    assert said is not None
    assert (said["error"][0], said["ticket"], pid) == ("'", 7, os.getpid())


def test_a_home_that_is_a_link_brings_no_folder_of_the_host(tmp_path: Path) -> None:
    plain, linked, host = (tmp_path / name for name in ("plain", "linked", "host"))
    for folder in (plain / "root", linked, host):
        folder.mkdir(parents=True)
        (folder / "file").write_text("")
    (linked / "root").symlink_to(host)
    root = Root(image_id="im", python=Path("/bin/python3"), site_packages=None, env={}, layers=(plain, linked))
    request = Workshop(None, tmp_path).request("f = 1")  # type: ignore[arg-type]
    sdk = sdk_files.install(tmp_path / "sdk")
    wanted = DockerWanted(name="ct", request=request, root=root, sdk=sdk)
    body = wanted.body(image_name="im", folder=tmp_path, user=1, limits=LIMITS, tag="t", argv=["python3"])
    sources = {mount["Source"] for mount in body["HostConfig"]["Mounts"]}
    assert str(plain / "root") in sources
    assert not [source for source in sources if os.path.islink(source)]


@pytest.mark.root
def test_a_home_is_what_all_layers_say_without_what_may_not_be_read(tmp_path: Path) -> None:
    homes, code, home = (tmp_path / name for name in ("homes", "code", "home"))
    for name in ("0/kept/file", "0/gone", "0/replaced/old", "0/merged/below", "2/merged/above", "10/replaced"):
        path = homes / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (homes / "2/link").symlink_to("/nowhere")
    os.mknod(homes / "10/gone", stat.S_IFCHR, 0)
    for folder in (code, home):
        folder.mkdir()
    (code / "app.py").write_text("")
    (homes / "0/secret").mkdir(mode=0o700)
    home.chmod(0o777)
    tmp_path.chmod(0o755)

    pid = os.fork()
    if pid == 0:  # as in a container: nobody
        os.chdir(tmp_path)
        os.setresuid(65534, 65534, 65534)
        try:
            fill_home("homes", "code", "home")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)

    found = {str(path.relative_to(home)) for path in home.rglob("*")}
    assert found == {
        "kept",
        "kept/file",
        "replaced",
        "merged",
        "merged/below",
        "merged/above",
        "link",
        "app.py",
        "secret",
    }
    assert (home / "replaced").read_text() == "10/replaced"


@pytest.mark.root
async def test_a_first_process_that_says_more_than_its_end_is_ended(tmp_path: Path) -> None:
    threads = ThreadPoolExecutor(2)
    engine = Engine(tmp_path / "engine")
    placed = Placed(engine, "name", tmp_path / "container", threads, threads)
    link = RunnerLink("ct", tmp_path, tmp_path, print)
    container = DockerContainer("ct", link, placed, LIMITS)
    ours, theirs = socket.socketpair()
    async with await asyncio.start_unix_server(lambda _, writer: writer.close(), tmp_path / "engine"):
        with theirs:
            ours.setblocking(False)
            container.watch(ours)
            theirs.sendall(b"x" * 10_000)
            async with asyncio.timeout(10):
                assert (await container.wait()).signal == 9
        assert len(container._end) < 100
        assert container.removed is not None
        await container.removed
    engine.close()
    threads.shutdown()


@pytest.mark.root
async def test_a_command_that_nobody_waits_for_any_more_does_not_run(tmp_path: Path) -> None:
    link = LauncherLink(tmp_path)
    command = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
    try:
        link._on_frame(Frame(FromLauncher.ENTERED, {"ticket": 7, "pid": command.pid, "message": ""}))
        async with asyncio.timeout(10):
            assert await command.wait() == -9
    finally:
        await link.close()
