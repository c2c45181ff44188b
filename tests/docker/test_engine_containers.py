"""What the Docker backend leaves in its engine and on the machine: nothing, however the agent ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.docker.sandboxes import docker_backend, shared_base_root
from tests.sdk.runner.containers import Workshop, alive, call, value
from tests.support.eventually import eventually

from squall.spec import Resources
from squall_gpu_agent.backend import StartFailed
from squall_gpu_agent.backends.docker.backend import DockerBackend
from squall_gpu_agent.backends.docker.container import Begun
from squall_gpu_agent.backends.docker.wanted import AGENT_LABEL

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.docker]


@pytest.fixture
async def backend(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DockerBackend]:
    backend = docker_backend(tmp_path / "docker", shared_base_root(tmp_path_factory))
    yield backend
    await backend.close()


def held(backend: DockerBackend) -> dict[str, Any]:
    """By the engine and by this machine."""
    prefix = f"sq{backend._tag[:6]}"
    return {
        "containers": len(backend._engine.containers(f"{AGENT_LABEL}={backend._tag}")),
        "folders": len(os.listdir(backend._data / "containers")),
        "mounts": Path("/proc/self/mountinfo").read_text().count(str(backend._data)),
        "links": len([name for name in os.listdir("/sys/class/net") if name.startswith(prefix)]),
    }


async def test_nothing_is_left_of_containers_that_ended_or_never_began(backend: DockerBackend, tmp_path: Path) -> None:
    workshop = Workshop(backend, tmp_path)  # type: ignore[arg-type]
    request = workshop.request("def f(x): return x", resources=Resources(cpu=0.25, cpu_limit=0.5))
    one = await workshop.again(request)
    await begun_ahead(backend)
    before = held(backend)
    assert before == {"containers": 2, "folders": 2, "mounts": 2, "links": 1}

    async def cycle(number: int) -> None:
        container = await workshop.again(request)
        assert value(await call(container, number)) == number
        if number % 2:
            container.kill()
        await container.stop()

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(cycle(number))
    with pytest.raises(StartFailed, match="No module named"):
        await workshop.start("import not_there")
    await begun_ahead(backend)
    async with asyncio.TaskGroup() as group:
        taking = group.create_task(workshop.again(request))  # the one that was begun ahead
        given_up = group.create_task(workshop.again(request))
        await eventually(lambda: held(backend)["containers"] == 3)
        given_up.cancel()
    await taking.result().stop()
    await begun_ahead(backend)
    await eventually(lambda: held(backend) == before, within_s=20)
    await one.stop()
    await backend._ahead.close()
    await eventually(lambda: set(held(backend).values()) == {0}, within_s=20)


async def test_the_next_container_of_a_function_is_begun_ahead(backend: DockerBackend, tmp_path: Path) -> None:
    workshop = Workshop(backend, tmp_path)  # type: ignore[arg-type]
    told = "import os\nseen = os.environ['TOLD']\ndef f(): return [seen, os.environ['TOLD']]"
    request = workshop.request(told, env={"TOLD": "one"})
    first = await workshop.again(request)
    begun = await begun_ahead(backend)
    assert Path(f"/proc/{begun.pid}/environ").read_bytes().count(b"TOLD") == 0

    second = await workshop.again(replace(request, env={"TOLD": "two"}))

    assert (second.pid, second.how) == (begun.pid, "fresh")
    assert value(await call(first)) == ["one", "one"]
    assert value(await call(second)) == ["two", "two"]
    # What one cannot be made of is not taken: it has ended, or another function would be in it.
    following = await begun_ahead(backend)
    os.kill(following.pid, signal.SIGKILL)
    await eventually(lambda: not following.usable)
    third = await workshop.again(request)
    assert third.pid != following.pid
    assert value(await call(third)) == ["one", "one"]
    waiting = await begun_ahead(backend)
    other = await workshop.again(workshop.request(told, env={"TOLD": "three"}, function_id="fu-other"))
    assert other.pid != waiting.pid
    assert waiting.usable


async def begun_ahead(backend: DockerBackend) -> Begun:
    """The only one that waits."""
    await eventually(lambda: len(backend._ahead._waiting) == 1 and not backend._ahead._coming, within_s=20)
    ((begun, _),) = backend._ahead._waiting.values()
    return begun


async def test_containers_end_with_their_agent_and_the_next_one_clears_up(
    backend: DockerBackend, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    workshop = Workshop(backend, tmp_path)  # type: ignore[arg-type]
    stubborn = """
    import time
    def f():
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
    """
    container = await workshop.start(stubborn)
    async with asyncio.TaskGroup() as group:
        group.create_task(call(container))
        await eventually(lambda: container.running)
        begun = await begun_ahead(backend)
        door = container.door  # type: ignore[attr-defined]
        asyncio.get_running_loop().remove_reader(door)
        for each in (door, begun.door):
            each.close()  # as when the agent is killed
        await eventually(lambda: not alive(container.pid) and not alive(begun.pid), within_s=20)
        assert held(backend)["containers"] == 2
        successor = docker_backend(tmp_path / "docker", shared_base_root(tmp_path_factory))
        assert (await successor.probe()).backend == "docker"
        assert set(held(successor).values()) == {0}
        container.exited(None)  # type: ignore[attr-defined]
    await successor.close()
