"""Containers without a template: forks of an interpreter that has imported nobody's code."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.docker.sandboxes import sandbox_backend, shared_base_root
from tests.docker.test_forks_ahead import pid_of, waiting_of
from tests.docker.test_leaks import disks
from tests.sdk.runner.containers import Workshop, call, descendants_of, value
from tests.support.eventually import eventually

from squall.spec import ImageStep, Resources
from squall_gpu_agent.backend import StartFailed
from squall_gpu_agent.backends import launch
from squall_gpu_agent.backends.sandbox import disks as disk_files
from squall_gpu_agent.backends.sandbox.backend import SandboxBackend
from squall_gpu_agent.backends.sandbox.container import REPORTED_S
from squall_gpu_agent.backends.sandbox.disks import Disk
from squall_gpu_agent.backends.sandbox.forks import Fork
from squall_gpu_agent.backends.sandbox.slots import Slot
from squall_gpu_agent.backends.sandbox.template import BareInterpreter
from squall_gpu_agent.backends.warden_link import SpawnFailed

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(300)]

CODE = """
import os, random
imported_by = os.getpid()

def f():
    name = os.environ["SQUALL_CONTAINER_ID"]
    return name, imported_by == os.getpid(), random.random(), dict(os.environ), os.listdir("/root")
"""

SELF = """
import locale, os, random, re, resource, signal, sys, uuid

KEPT = re.compile("Cap|Sig[BIC]|Shd|NoNewPrivs|Seccomp:|Uid|Gid|Groups|Threads|NSpid|Umask|THP")

def read(path):
    with open(path) as file:
        return file.read()

def links():
    for name in os.listdir("/proc/self/fd"):
        try:
            yield re.sub("[0-9]+", "", os.readlink("/proc/self/fd/" + name))
        except OSError:
            pass

def mounts():
    for line in read("/proc/self/mountinfo").splitlines():
        fields = line.split()
        yield fields[4], fields[5], fields[fields.index("-") + 1]

def f():
    return {
        "status": [line for line in read("/proc/self/status").splitlines() if KEPT.match(line)],
        "maps": [read("/proc/self/" + name).split() for name in ("uid_map", "gid_map", "oom_score_adj")],
        "groups": read("/proc/self/cgroup"),
        "limits": [resource.getrlimit(number) for number in range(16)],
        "descriptors": sorted(links()),
        "mounts": sorted(mounts()),
        "variables": dict(os.environ),
        "session": os.getsid(0) == os.getpid(),
        "places": [os.getcwd(), sys.argv, sys.path, sys.executable, sys.prefix, sys.exec_prefix],
        "platform": os.listdir("/run/squall"),
        "flags": [tuple(sys.flags), sys.getfilesystemencoding(), sys.stdout.encoding],
        "locale": locale.setlocale(locale.LC_CTYPE),
        "interrupts": [str(signal.getsignal(number)).split(" at ")[0] for number in (2, 13, 15, 17)],
    }, (random.random(), uuid.uuid4().hex, os.urandom(8))
"""


@pytest.fixture
async def backend(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SandboxBackend]:
    backend = sandbox_backend(tmp_path / "sandbox", shared_base_root(tmp_path_factory))
    yield backend
    await backend.close()


@pytest.fixture
def workshop(backend: SandboxBackend, tmp_path: Path) -> Workshop:
    return Workshop(backend, tmp_path)  # type: ignore[arg-type]


def bare_of(backend: SandboxBackend) -> BareInterpreter:
    (bare,) = backend._bare.all()
    return bare


async def waiting(backend: SandboxBackend) -> Fork:
    """The fork that was made ahead, of the function asked for last."""
    return await waiting_of(backend._kept.all()[-1])


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_each_imports_for_itself_and_is_forked_all_the_same(backend: SandboxBackend, workshop: Workshop) -> None:
    request = workshop.request(CODE, env={"FIRST": "1"})
    containers = [await workshop.again(request), await workshop.again(request)]
    assert {parent_of(container.pid) for container in containers} == {bare_of(backend).pid}
    assert {(container.how, container.why) for container in containers} == {
        ("fresh", "templates are turned off for this function")
    }
    seen = [value(await call(container)) for container in containers]
    assert [name for name, *_ in seen] == [container.id for container in containers]
    assert all(own for _, own, *_ in seen)
    assert seen[0][2] != seen[1][2]  # random streams
    assert all(env["FIRST"] == "1" for *_, env, _ in seen)


async def test_functions_of_one_app_share_it_and_see_nothing_of_each_other(
    backend: SandboxBackend, workshop: Workshop
) -> None:
    one = await workshop.again(workshop.request({"root/app.py": CODE, "root/one.txt": "1"}, env={"SECRET": "1"}))
    other = await workshop.again(workshop.request({"root/app.py": CODE, "root/other.txt": "2"}))
    assert {parent_of(container.pid) for container in (one, other)} == {bare_of(backend).pid}
    *_, env, files = value(await call(other))
    assert "SECRET" not in env
    assert "other.txt" in files
    assert "one.txt" not in files


async def test_a_fork_of_it_has_the_rights_and_surroundings_of_a_process_of_its_own(
    backend: SandboxBackend, workshop: Workshop
) -> None:
    fork = await workshop.again(workshop.request(SELF, env={"DECLARED": "1"}))
    own = await workshop.again(workshop.request(SELF, env={"DECLARED": "1", "MALLOC_ARENA_MAX": "8"}))
    assert (fork.forked, own.forked) == (True, False)  # type: ignore[attr-defined]
    (seen, some), (wanted, others) = value(await call(fork)), value(await call(own))
    assert wanted["variables"].pop("MALLOC_ARENA_MAX") == "8"
    for container, found in ((fork, seen), (own, wanted)):
        for name in ("SQUALL_CONTAINER_ID", "MODAL_TASK_ID"):
            assert found["variables"].pop(name) == container.id
        found["variables"].pop("SQUALL_FUNCTION_ID")
    assert {name: (seen[name], wanted[name]) for name in wanted if seen[name] != wanted[name]} == {}
    again = value(await call(await workshop.again(workshop.request(SELF))))[1]
    assert all(len({*each}) == 3 for each in zip(some, others, again, strict=True))  # random streams


async def test_apps_do_not_share_one(backend: SandboxBackend, workshop: Workshop) -> None:
    request = workshop.request(CODE)
    one = await workshop.again(request)
    other = await workshop.again(replace(request, app_id="ap-other"))
    assert len(backend._bare.all()) == 2
    assert parent_of(one.pid) != parent_of(other.pid)


async def test_the_next_container_is_the_fork_that_waits(backend: SandboxBackend, workshop: Workshop) -> None:
    request = workshop.request(CODE)
    await workshop.again(request)
    fork = await waiting(backend)
    second = await workshop.again(request)
    assert second.pid == await pid_of(fork)
    assert value(await call(second))[0] == second.id


async def test_it_forks_ahead_for_the_functions_that_were_started_last(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    backend = sandbox_backend(tmp_path / "sandbox", shared_base_root(tmp_path_factory), max_templates=2)
    workshop = Workshop(backend, tmp_path)  # type: ignore[arg-type]
    try:
        requests = [replace(workshop.request(CODE), function_id=f"fn-{number}") for number in range(3)]
        containers = [await workshop.again(request) for request in requests]
        await waiting(backend)
        other = replace(requests[0], app_id="ap-other")
        containers.append(await workshop.again(other))
        assert len(backend._bare.all()) == 2
        assert len(backend._kept.all()) == 2
        for container in containers:
            await container.stop()
        for bare in backend._bare.all():
            bare.retire()
        assert backend._kept.all() == []
        assert backend._open_parts is not None
        launcher = backend._open_parts.launcher.pid
        await eventually(lambda: descendants_of(launcher) == [])
    finally:
        await backend.close()


@pytest.mark.parametrize("how", ["declared by the function", "declared by the image", "files over the image's"])
async def test_what_a_fork_would_see_too_late_has_an_interpreter_of_its_own(
    backend: SandboxBackend, workshop: Workshop, how: str
) -> None:
    request = workshop.request(CODE)
    if how == "files over the image's":
        library = request.code_dir / "usr/lib/of-the-bundle.so"
        library.parent.mkdir(parents=True)
        library.touch()
    elif how == "declared by the image":
        image = replace(request.spec.image, steps=(ImageStep("env", {"LD_LIBRARY_PATH": "/opt/x"}),))
        request = replace(request, spec=replace(request.spec, image=image))
    else:
        request = replace(request, env={"MALLOC_ARENA_MAX": "1"})
    container = await workshop.again(request)
    assert value(await call(container))[0] == container.id
    assert backend._bare.all() == []


async def test_the_locale_that_it_has_itself_needs_no_other(backend: SandboxBackend, workshop: Workshop) -> None:
    container = await workshop.again(workshop.request(CODE, env={"LANG": "C.UTF-8", "LC_ALL": "C.utf8"}))
    *_, env, _ = value(await call(container))
    assert container.forked  # type: ignore[attr-defined]
    assert env["LC_ALL"] == "C.utf8"


async def test_files_of_the_bundle_come_before_what_it_has_imported(workshop: Workshop) -> None:
    source = "import squall, ipaddress\n\ndef f(): return ipaddress.mine"
    files = {"root/ipaddress.py": "mine = True", "root/app.py": source}
    app = await workshop.start("import ipaddress, sys\n\ndef f(): return 'squall.app' in sys.modules")
    assert value(await call(app)) is True
    assert value(await call(await workshop.start(files))) is True


async def test_its_end_is_told_as_it_was(workshop: Workshop) -> None:
    container = await workshop.start("import os\n\ndef f(): os._exit(7)")
    await call(container)
    assert (await container.wait()).code == 7


async def test_after_its_end_the_next_start_makes_another(backend: SandboxBackend, workshop: Workshop) -> None:
    request = workshop.request(CODE)
    await workshop.again(request)
    await waiting(backend)
    killed = bare_of(backend).pid
    os.kill(killed, 9)
    await eventually(lambda: backend._bare.all() == [])
    container = await workshop.again(request)
    assert bare_of(backend).pid != killed
    assert value(await call(container))[0] == container.id


async def test_many_at_once_make_one_and_have_a_fork_each(backend: SandboxBackend, workshop: Workshop) -> None:
    request = workshop.request(CODE)
    containers = await asyncio.gather(*(workshop.again(request) for _ in range(6)))
    assert {parent_of(container.pid) for container in containers} == {bare_of(backend).pid}
    assert len({container.pid for container in containers}) == 6


async def test_a_slot_that_is_not_to_be_had_leaves_nothing(
    backend: SandboxBackend, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the agent has too many files open."""
    request = workshop.request(CODE)
    await workshop.again(request)
    await waiting(backend)
    ahead = backend._kept.all()[-1]
    ahead.take().drop()
    assert backend._open_parts is not None
    slots = backend._open_parts.launcher._slots
    pipes, before, opened = os.pipe, set(slots), len(os.listdir("/proc/self/fd"))
    second: list[bool] = []

    def only_one() -> tuple[int, int]:
        if second:
            raise OSError(24, "Too many open files")
        second.append(True)
        return pipes()

    with monkeypatch.context() as patched:
        patched.setattr(os, "pipe", only_one)
        with pytest.raises(OSError, match="Too many"):
            ahead.take()
    assert len(os.listdir("/proc/self/fd")) <= opened
    assert set(slots) <= before
    assert value(await call(await workshop.again(request)))[1] is True


async def test_a_fork_that_the_check_refuses_is_told_and_the_container_starts_plainly(
    backend: SandboxBackend, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = workshop.request(CODE)
    await workshop.again(request)
    refused = (await waiting(backend)).slot
    assert backend._open_parts is not None
    launcher = backend._open_parts.launcher
    backend._kept.all()[-1].close()
    place = launcher.place

    async def refuse(slot: Slot, template: Slot) -> int:
        await place(slot, template)
        raise SpawnFailed("the fork has kept capabilities")

    monkeypatch.setattr(launcher, "place", refuse)
    container = await workshop.again(request)
    assert container.how == "fresh"
    assert container.why == (
        "templates are turned off for this function; not forked from a bare interpreter: the fork has kept capabilities"
    )
    assert not container.forked  # type: ignore[attr-defined]
    assert value(await call(container))[0] == container.id
    assert refused.name not in launcher._slots


@pytest.mark.parametrize("use_template", [False, True])
async def test_a_container_whose_slot_is_not_made_starts_plainly_and_lives(
    backend: SandboxBackend, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, use_template: bool
) -> None:
    """As when what it is forked from ends at that moment. The end of that slot is not the container's."""
    request = workshop.request(CODE, use_template=use_template)
    await workshop.again(request)
    (parent,) = backend._templates.all() or backend._bare.all()
    monkeypatch.setattr(parent.slot, "plan", parent.slot.plan._replace(slot="sb-ended"))
    for ahead in (*backend._kept.all(), getattr(parent, "ahead", None)):
        if ahead is not None:
            ahead.close()
    container = await workshop.again(request)
    assert "no slot: " in container.why
    assert container.how == "fresh"
    await asyncio.sleep(2 * REPORTED_S)  # its slot's end, if it were told as the container's
    assert value(await call(container))[0] == container.id


async def test_why_a_bare_interpreter_does_not_start_is_told_with_what_it_wrote(
    backend: SandboxBackend, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = launch.command

    def broken(python: Path, sdk: str, first: str = "") -> list[str]:
        monkeypatch.setattr(launch, "command", command)
        return command(python, sdk, "raise SystemExit('no module of that name'); ")

    monkeypatch.setattr(launch, "command", broken)
    container = await workshop.again(workshop.request(CODE))
    assert container.why == (
        "templates are turned off for this function; no bare interpreter: it ended (it wrote: no module of that name)"
    )
    assert value(await call(container))[0] == container.id
    assert (await workshop.again(workshop.request(CODE))).forked  # type: ignore[attr-defined]


async def test_a_disk_whose_container_cannot_be_begun_is_given_back(
    backend: SandboxBackend, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = workshop.request(CODE, resources=Resources(ephemeral_disk_mib=600))
    await workshop.again(request)
    before = disks(backend)
    made: list[Disk] = []
    make = disk_files.make

    def noted(folder: Path, mib: int) -> Disk:
        made.append(make(folder, mib))
        return made[-1]

    def full(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(disk_files, "make", noted)
    monkeypatch.setattr("squall_gpu_agent.backends.sandbox.forks.Ends", full)
    with pytest.raises(StartFailed, match="Too many"):
        await workshop.again(request)
    assert made[-1]._descriptor < 0
    await eventually(lambda: disks(backend) == before)
