"""The process backend: starting, ending, and what is left behind (nothing)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.sdk.runner.containers import Workshop, alive, call, descendants_of, images_dir, value, workshop
from tests.support.eventually import eventually

from squall.spec import ImageSpec, ImageStep, Resources
from squall_gpu_agent.backend import Isolation, Lost, Phase, StartFailed, StartFailureKind
from squall_gpu_agent.backends import warden

__all__ = ["images_dir", "workshop"]

pytestmark = pytest.mark.slow

STAND_IN = Path(__file__).parent / "agent_stand_in.py"


async def test_the_probe_tells_what_this_machine_can_do(workshop: Workshop) -> None:
    found = await workshop.backend.probe()
    assert found.isolation is Isolation.PROCESS
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in found.python_versions
    assert "no isolation" in found.notes[0]
    assert found.mount_namespaces or len(found.notes) == 2


def check_phases(phases: tuple[Phase, ...]) -> None:
    """In order, without overlap."""
    for before, after in itertools.pairwise(phases):
        assert before.start_ns + before.duration_ns <= after.start_ns


async def test_a_fresh_start_tells_its_phases_and_why_it_was_not_forked(workshop: Workshop) -> None:
    container = await workshop.start("def f(): return 1")
    assert (container.how, container.why) == ("fresh", "templates are turned off for this function")
    names = [phase.name for phase in container.phases]
    assert names == ["image.ensure", "sandbox.create", "runner.connect", "code.import", "enter"]
    check_phases(container.phases)


async def test_an_import_error_is_data(workshop: Workshop) -> None:
    for use_template in (False, True):
        with pytest.raises(StartFailed) as caught:
            await workshop.start("import not_there", use_template=use_template)
        failed = caught.value
        assert (failed.kind, failed.type_name) == (StartFailureKind.USER_CODE, "ModuleNotFoundError")
        assert failed.message == "No module named 'not_there'"
        assert failed.traceback.startswith('Traceback (most recent call last):\n  File "/root/app.py", line 1')
        assert "importlib" not in failed.traceback


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import sys; sys.exit(4)", "4"),
        ("import os; os._exit(4)", "exited with code 4"),
        ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV"),
        ("x = 1", "has no 'f'"),
    ],
)
async def test_code_that_ends_its_process_or_has_no_function_fails_the_start(
    workshop: Workshop, body: str, words: str
) -> None:
    with pytest.raises(StartFailed) as caught:
        await workshop.start(body)
    assert caught.value.kind is StartFailureKind.USER_CODE
    assert words in caught.value.message


async def test_a_start_that_is_killed_is_not_blamed_on_the_code(workshop: Workshop) -> None:
    with pytest.raises(StartFailed) as caught:
        await workshop.start("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert (caught.value.kind, "killed by SIGKILL" in caught.value.message) == (StartFailureKind.KILLED, True)


@pytest.mark.parametrize("use_template", [False, True])
async def test_a_slow_import_is_stopped_at_the_startup_timeout(workshop: Workshop, use_template: bool) -> None:
    with pytest.raises(StartFailed) as caught:
        await workshop.start("import time; time.sleep(60)", startup_timeout_s=1, use_template=use_template)
    assert caught.value.kind is StartFailureKind.TIMEOUT
    assert "1 s (startup_timeout)" in caught.value.message
    warden = await workshop.warden_pid()
    await eventually(lambda: descendants_of(warden) == workshop.bare_pids())


async def test_a_python_that_is_not_here_is_an_image_error_that_names_those_that_are(workshop: Workshop) -> None:
    with pytest.raises(StartFailed) as caught:
        await workshop.start("def f(): pass", image=ImageSpec("3.99"))
    assert caught.value.kind is StartFailureKind.IMAGE
    assert "no Python 3.99 on this machine (found: " in caught.value.message


async def test_a_bundle_that_is_not_there_is_an_infrastructure_failure(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(StartFailed) as caught:
        await workshop.start("def f(): pass", code_dir=tmp_path / "nowhere")
    assert caught.value.kind is StartFailureKind.INFRA


async def test_the_environment_is_small_and_declared(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_SECRET", "x")
    container = await workshop.start(
        "import os\nat_import = dict(os.environ)\ndef f(): return at_import, os.getcwd(), os.listdir('.')",
        image=ImageSpec(
            f"{sys.version_info[0]}.{sys.version_info[1]}",
            (ImageStep("base"), ImageStep("env", {"FROM_IMAGE": "i", "BOTH": "i"})),
        ),
        env={"BOTH": "f", "SECRET": "s"},
        resources=Resources(cpu=2.5),
        token="tk",
        socket_path=workshop.folder / "agent.sock",
        gpu_env={"CUDA_VISIBLE_DEVICES": "3"},
    )
    found, cwd, files = value(await call(container))
    assert "AGENT_SECRET" not in found
    assert (found["FROM_IMAGE"], found["BOTH"], found["SECRET"]) == ("i", "f", "s")
    assert (found["SQUALL_CONTAINER"], found["SQUALL_CONTAINER_ID"]) == ("1", container.id)
    assert (found["MODAL_IS_REMOTE"], found["MODAL_TASK_ID"]) == ("1", container.id)
    assert (found["SQUALL_TOKEN"], found["SQUALL_SOCKET"]) == ("tk", str(workshop.folder / "agent.sock"))
    assert found["CUDA_VISIBLE_DEVICES"] == "3"
    assert (found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"]) == ("3", "3")
    assert found["TMPDIR"].startswith(str(container.scratch))
    assert cwd == str(container.scratch / "root")
    assert files == ["app.py"]


async def test_files_that_a_container_writes_are_its_own_and_go_with_it(workshop: Workshop) -> None:
    request = workshop.request("def f(text):\n    open('out.txt', 'a').write(text)\n    return open('out.txt').read()")
    one, two = await workshop.launch(request), await workshop.again(request)
    assert value(await call(one, "1")) == "1"
    assert value(await call(two, "2")) == "2"
    assert not (request.code_dir / "root" / "out.txt").exists()
    await one.stop()
    await eventually(lambda: not one.scratch.exists())


async def test_what_a_container_started_ends_with_it(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import subprocess
        def f():
            plain = subprocess.Popen(["sleep", "600"])
            daemon = subprocess.Popen(["sleep", "600"], start_new_session=True)
            orphan = int(subprocess.check_output(["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"]))
            return plain.pid, daemon.pid, orphan
        """
    )
    pids = value(await call(container))
    assert all(map(alive, pids))
    container.kill()
    ended = await container.wait()
    assert (ended.signal, ended.reason) == (signal.SIGKILL, "killed")
    await eventually(lambda: not any(map(alive, pids)))


async def test_memory_above_the_limit_ends_the_container_with_oom(workshop: Workshop) -> None:
    container = await workshop.start(
        "import time\ndef f(mib):\n    data = bytearray(mib << 20)\n    time.sleep(mib / 50)\n    return len(data)",
        resources=Resources(memory_limit_mib=200),
    )
    assert value(await call(container, 10)) == 10 << 20
    end = await call(container, 400)
    assert isinstance(end, Lost)
    assert (end.exit.oom, end.exit.reason) == (True, "killed: out of memory (limit 200 MiB)")


async def test_memory_of_child_processes_counts(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import subprocess, sys
        def f(): subprocess.run([sys.executable, '-c', 'import time; x = bytearray(400 << 20); time.sleep(60)'])
        """,
        resources=Resources(memory_limit_mib=200),
    )
    end = await call(container)
    assert isinstance(end, Lost)
    assert end.exit.oom


async def test_user_code_that_closes_the_socket_ends_its_container_and_nothing_else(workshop: Workshop) -> None:
    other = await workshop.start("def f(): return 1")
    container = await workshop.start("import os, time\ndef f():\n    os.closerange(3, 1000)\n    time.sleep(0.1)")
    end = await call(container)
    assert isinstance(end, Lost)
    assert value(await call(other)) == 1


SOCKET = """
import gc, os, socket, time
def sock():
    return next(found for found in gc.get_objects() if isinstance(found, socket.socket)).fileno()
"""


@pytest.mark.parametrize("rubbish", [b"\xff" * 20, b"\x23\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00{}", b"GET /"])
async def test_a_runner_that_breaks_the_protocol_is_killed(workshop: Workshop, rubbish: bytes) -> None:
    container = await workshop.start(f"{SOCKET}def f():\n    os.write(sock(), {rubbish!r})\n    time.sleep(3)")
    end = await call(container)
    assert isinstance(end, Lost)


async def test_a_payload_file_outside_of_the_scratch_folder_is_refused(workshop: Workshop) -> None:
    container = await workshop.start(
        SOCKET
        + "from squall_runner.frames import encode, FromRunner\n"
        + "evil = dict(call='fc-evil', index=0, items=0)\n"
        + "evil['file'] = '../../../../../etc/passwd'\n"
        + "def f():\n    os.write(sock(), encode(FromRunner.OUTPUT, evil))\n    time.sleep(3)"
    )
    end = await call(container, call="fc-evil")
    assert isinstance(end, Lost)
    assert "payload file" in end.exit.reason
    assert Path("/etc/passwd").exists()


async def test_sixty_four_containers_start_at_once(workshop: Workshop) -> None:
    request = workshop.request("import os\ndef f(x): return x, os.getpid()", use_template=True)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        starts = [tasks.create_task(workshop.again(request)) for _ in range(64)]
    containers = [start.result() for start in starts]
    values = [value(end) for end in await asyncio.gather(*(call(c, n) for n, c in enumerate(containers)))]
    assert [x for x, _ in values] == list(range(64))
    assert len({pid for _, pid in values}) == 64
    assert {container.how for container in containers} == {"fork"}
    exits = await asyncio.gather(*(container.stop() for container in containers))
    assert {ended.reason for ended in exits} == {"stopped"}


async def test_closing_the_backend_leaves_no_process(workshop: Workshop) -> None:
    for use_template in (True, False):
        await workshop.start("def f(): pass", use_template=use_template)
    warden = await workshop.warden_pid()
    pids = [warden, *descendants_of(warden)]
    assert len(pids) == 5  # with the bare interpreter, the template, and a container of each kind
    await workshop.backend.close()
    assert not any(map(alive, pids))


async def test_a_killed_warden_ends_its_containers_and_the_next_start_has_a_new_one(workshop: Workshop) -> None:
    containers = [await workshop.start("def f(): pass", use_template=flag) for flag in (True, False)]
    os.kill(await workshop.warden_pid(), signal.SIGKILL)
    async with asyncio.timeout(10):
        for container in containers:
            await container.wait()
    await eventually(lambda: not any(alive(container.pid) for container in containers))
    assert value(await call(await workshop.start("def f(): return 1"))) == 1


def test_sigkill_of_the_agent_leaves_no_process_behind(tmp_path: Path, images_dir: Path) -> None:
    agent = subprocess.Popen(
        [sys.executable, str(STAND_IN), str(tmp_path), str(images_dir)], stdout=subprocess.PIPE, text=True
    )
    assert agent.stdout is not None
    pids = json.loads(agent.stdout.readline())
    assert len(pids) == 15
    assert all(map(alive, pids))
    agent.kill()
    agent.wait()
    agent.stdout.close()
    asyncio.run(eventually(lambda: not any(map(alive, pids)), within_s=5))


async def test_a_start_that_is_given_up_at_any_moment_harms_nothing_and_leaves_nothing(workshop: Workshop) -> None:
    """A start without a pid once swept session 0, which on some machines is the machine's own."""
    request = workshop.request("def f(): return 1", use_template=True)
    survivor = await workshop.again(request)
    bystander = subprocess.Popen(["sleep", "600"])  # 25 starts take more than a minute on a busy machine
    try:
        for step in range(25):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(step / 1000):
                    spec = replace(request.spec, use_template=bool(step % 2))
                    await workshop.again(replace(request, spec=spec))
        assert value(await call(survivor)) == 1
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_what_the_warden_may_kill_are_its_descendants_only() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        pids = {process.pid for process in warden._descendants(os.getpid())}
        assert child.pid in pids
        assert not pids & {0, 1, os.getpid(), os.getppid()}
        assert warden._descendants(child.pid) == []
    finally:
        child.kill()
        child.wait()


async def test_starts_and_ends_leave_no_descriptor_open(workshop: Workshop) -> None:
    good = workshop.request("def f(): return 1", use_template=True)
    bad = workshop.request("raise ValueError", use_template=True)
    plain = workshop.request("def f(): return 1")

    async def round_of_all() -> None:
        for request in (good, plain):
            container = await workshop.again(request)
            await call(container)
            await container.stop()
        with pytest.raises(StartFailed):
            await workshop.again(bad)

    await round_of_all()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await round_of_all()
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)
    containers = workshop.folder / "data" / "containers"
    await eventually(lambda: len(list(containers.iterdir())) == 2)  # of the template and of the bare interpreter
    assert list((workshop.folder / "data" / "results").iterdir()) == []
