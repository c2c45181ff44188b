"""What a sandbox leaves behind: nothing. SQUALL_TEST_CYCLES says how many are started and stopped (200)."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.docker.sandboxes import ISOLATING, gvisor_backend, isolating_backend, sandbox_backend, shared_base_root
from tests.sdk.runner.containers import Workshop, call, descendants_of, value
from tests.support.eventually import eventually
from tests.support.platform import rss_mib

from squall.spec import Resources
from squall_gpu_agent.backends.sandbox.backend import SandboxBackend

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(1800)]

CYCLES = int(os.environ.get("SQUALL_TEST_CYCLES", "200"))
AT_ONCE = 4
ON_DISK = Resources(ephemeral_disk_mib=600)
MOST_GROWTH_MIB = 16.0
"""Of allocators and caches: 2,000 cycles that each kept 10 KiB would be more."""


@pytest.fixture
async def backend(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SandboxBackend]:
    backend = sandbox_backend(tmp_path / "sandbox", shared_base_root(tmp_path_factory))
    yield backend
    await backend.close()


@pytest.fixture(params=ISOLATING[:2])
async def each(
    request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SandboxBackend]:
    """Those with a launcher."""
    backend = isolating_backend(request.param, tmp_path / "data", shared_base_root(tmp_path_factory))
    assert isinstance(backend, SandboxBackend)
    yield backend
    await backend.close()


def held(backend: SandboxBackend) -> dict[str, Any]:
    """What the backend, its launcher and the kernel hold at the moment, as far as it can be counted."""
    opened = backend._open_parts
    assert opened is not None
    launcher = opened.launcher.pid
    processes = descendants_of(launcher)
    tops = opened.groups._top.values()
    table = f"squall_{backend._networks._table.removeprefix('squall_')}" if backend._networks else ""
    chains = subprocess.run(["nft", "list", "table", "inet", table], capture_output=True, text=True, check=False).stdout
    return {
        "processes": len(processes),
        "namespaces": len({_link(f"/proc/{pid}/ns/{kind}") for pid in processes for kind in ("mnt", "net", "pid")}),
        "mounts of the host": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "mounts of the launcher": len(Path(f"/proc/{launcher}/mountinfo").read_text().splitlines()),
        "control groups": sum(len([path for path in top.iterdir() if path.is_dir()]) for top in set(tops)),
        "folders": len(os.listdir(backend._data / "slots")),
        "files of the launcher": len(os.listdir(f"/proc/{launcher}/fd")),
        "files of the agent": len(os.listdir("/proc/self/fd")),
        "links": len([name for name in os.listdir("/sys/class/net") if name.startswith(f"sq{table[7:]}")]),
        "rules": chains.count("chain"),
        "disks": len(disks(backend)),
    }


def forked_ahead(backend: SandboxBackend) -> bool:
    """Whether the next fork of each function is made."""
    ahead = [template.ahead for template in backend._templates.all()]
    ahead += backend._kept.all()
    forks = [each.fork for each in ahead if each is not None]
    return all(fork is not None and fork.pid is not None and fork.pid.done() for fork in forks)


def disks(backend: SandboxBackend) -> list[str]:
    """Block devices on files of the backend."""
    found = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    return [file for file in found if file.startswith(f"{backend._data}/")]


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


@pytest.mark.parametrize("use_template", [False, True])
async def test_nothing_is_left_of_many_sandboxes(backend: SandboxBackend, tmp_path: Path, use_template: bool) -> None:
    links = 3 if use_template else 2  # a bare interpreter has no network
    # Besides the container's: the template's or the bare interpreter's, and the one with the fork that was made ahead.
    await nothing_is_left(backend, tmp_path, use_template, {"folders": 3, "links": links}, CYCLES // 2)


@pytest.mark.gvisor
async def test_nothing_is_left_of_many_containers_of_gvisor(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    backend = gvisor_backend(tmp_path / "gvisor", shared_base_root(tmp_path_factory))
    await nothing_is_left(backend, tmp_path, False, {"folders": 1, "links": 1}, max(AT_ONCE, CYCLES // 40))
    await backend.close()


async def nothing_is_left(
    backend: SandboxBackend, folder: Path, use_template: bool, slots: dict[str, int], count: int
) -> None:
    """After `count` starts and stops, of half of them by force."""
    workshop = Workshop(backend, folder)  # type: ignore[arg-type]
    request = workshop.request("def f(x): return x", use_template=use_template)

    async def cycles(count: int) -> None:
        for number in range(count):
            container = await workshop.again(request)
            assert value(await call(container, number)) == number
            if number % 2:
                container.kill()
            else:
                await container.stop()
            await container.wait()

    async def many(count: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(cycles(count // AT_ONCE))

    def settled() -> dict[str, Any]:
        return held(backend)

    await many(2 * AT_ONCE)
    container = await workshop.again(request)  # one lives: what it holds is the measure
    await eventually(lambda: settled() == {**settled(), **slots} and forked_ahead(backend))
    before, memory = settled(), resident(backend)
    began = time.monotonic()
    await many(count)
    took_s = time.monotonic() - began
    try:
        await eventually(lambda: settled() == before, within_s=30)
    except AssertionError:
        assert settled() == before  # which of them
    grown = {name: now - memory[name] for name, now in resident(backend).items()}
    print(f"{count} in {took_s:.0f} s; {before}; memory grew by {grown} MiB")
    assert max(grown.values()) < MOST_GROWTH_MIB, grown
    await container.stop()


def resident(backend: SandboxBackend) -> dict[str, float]:
    """MiB of what stays: this process, which is the agent, and its launcher."""
    assert backend._open_parts is not None
    gc.collect()
    return {"agent": rss_mib(os.getpid()), "launcher": rss_mib(backend._open_parts.launcher.pid)}


async def test_nothing_is_left_of_a_backend(each: SandboxBackend, tmp_path: Path) -> None:
    backend = each
    workshop = Workshop(backend, tmp_path)  # type: ignore[arg-type]
    for use_template in (False, True):
        await workshop.start("def f(): pass", use_template=use_template, resources=ON_DISK)
    assert len(disks(backend)) == (3 if backend.name == "sandbox" else 2)  # with the template's
    opened = backend._open_parts
    assert opened is not None
    launcher, tops = opened.launcher.pid, set(opened.groups._top.values())
    pids = [launcher, *descendants_of(launcher)]
    await backend.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not any(top.exists() for top in tops)
    assert not (backend._data / "slots").exists()
    await eventually(lambda: disks(backend) == [], within_s=60)


async def test_a_killed_launcher_ends_all_sandboxes_and_the_next_start_has_a_new_one(
    each: SandboxBackend, tmp_path: Path
) -> None:
    backend = each
    workshop = Workshop(backend, tmp_path)  # type: ignore[arg-type]
    containers = [await workshop.start("def f(): pass", use_template=flag, resources=ON_DISK) for flag in (True, False)]
    assert disks(backend) != []
    opened = backend._open_parts
    assert opened is not None
    pids = descendants_of(opened.launcher.pid)
    os.kill(opened.launcher.pid, 9)
    async with asyncio.timeout(10):
        for container in containers:
            await container.wait()
    await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    await eventually(lambda: disks(backend) == [], within_s=60)
    assert value(await call(await workshop.start("def f(): return 1"))) == 1


@pytest.mark.parametrize("use_template", [False, True])
async def test_a_launcher_whose_agent_is_gone_ends_also_while_it_makes_slots(
    backend: SandboxBackend, tmp_path: Path, use_template: bool
) -> None:
    workshop = Workshop(backend, tmp_path)  # type: ignore[arg-type]
    container = await workshop.start("def f(): pass", use_template=use_template)
    assert container.forked, container.why  # type: ignore[attr-defined]
    assert backend._open_parts is not None
    launcher = backend._open_parts.launcher
    pids = [launcher.pid, *descendants_of(launcher.pid)]
    (ahead,) = [template.ahead for template in backend._templates.all()] or backend._kept.all()
    assert ahead is not None

    for _ in range(8):
        ahead._make_slot()
    launcher._control.close()  # as the kernel does for an agent that was killed

    await eventually(lambda: launcher._process.poll() is not None, within_s=60)
    await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


async def test_nothing_is_left_of_a_template_that_retired(backend: SandboxBackend, tmp_path: Path) -> None:
    workshop = Workshop(backend, tmp_path)  # type: ignore[arg-type]
    for resources, kept in ((Resources(), 2), (ON_DISK, 3)):  # the first has a fork that waits
        container = await workshop.start("def f(): pass", use_template=True, resources=resources)
        assert container.how == "fork", container.why
        await container.stop()
        await eventually(lambda kept=kept: held(backend)["folders"] == kept)
    assert held(backend)["disks"] == 1
    for template in list(backend._templates.all()):
        template.retire()
    names = ("folders", "links", "control groups", "disks")
    await eventually(lambda: (now := held(backend)) and not any(now[name] for name in names), within_s=60)


async def test_a_start_that_was_given_up_does_not_disturb_what_the_launcher_says(backend: SandboxBackend) -> None:
    await backend.probe()
    assert backend._open_parts is not None
    launcher = backend._open_parts.launcher
    await eventually(lambda: not launcher._slots)
    async with asyncio.TaskGroup() as group:
        start = group.create_task(backend._try_a_slot())
        await asyncio.sleep(0)
        (slot,) = launcher._slots.values()
        start.cancel()
    assert not slot.made.cancelled()
    await eventually(lambda: held(backend)["folders"] == 0)


async def test_a_network_that_came_to_nothing_or_too_late_is_taken_away(
    backend: SandboxBackend, tmp_path: Path
) -> None:
    workshop = Workshop(backend, tmp_path)  # type: ignore[arg-type]
    container = await workshop.start("def f(): pass", block_network=True)
    networks = backend._networks
    assert networks is not None
    before = held(backend)["rules"]
    nobody = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    with pytest.raises(OSError, match="No such"):
        networks.connect(nobody, ["198.51.100.0/24"])
    assert networks._used == set()
    assert held(backend)["rules"] == before
    slot = container.slot  # type: ignore[attr-defined]
    slot.removed, slot.ready = True, asyncio.get_running_loop().create_future()
    backend._connect(slot, workshop.request("def f(): pass").spec)
    await slot.ready
    await eventually(lambda: networks._used == set() and held(backend)["links"] == 0)
