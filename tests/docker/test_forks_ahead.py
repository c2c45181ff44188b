"""Containers whose fork was made before anybody asked for them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.docker.sandboxes import sandbox_backend, shared_base_root
from tests.sdk.runner.containers import Workshop, call, descendants_of, value
from tests.support.eventually import eventually

from squall_gpu_agent.backend import Container
from squall_gpu_agent.backends.sandbox.backend import SandboxBackend
from squall_gpu_agent.backends.sandbox.forks import Ahead, Fork
from squall_gpu_agent.backends.sandbox.template import SandboxTemplate

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(300)]

CODE = "import os, random\n\ndef f(): return os.environ['SQUALL_CONTAINER_ID'], random.random(), os.getpid()"


@pytest.fixture
async def backend(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SandboxBackend]:
    backend = sandbox_backend(tmp_path / "sandbox", shared_base_root(tmp_path_factory))
    yield backend
    await backend.close()


@pytest.fixture
def workshop(backend: SandboxBackend, tmp_path: Path) -> Workshop:
    return Workshop(backend, tmp_path)  # type: ignore[arg-type]


def template_of(backend: SandboxBackend) -> SandboxTemplate:
    (template,) = backend._templates.all()
    return template


async def waiting(backend: SandboxBackend) -> Fork:
    """The fork that was made ahead."""
    template = template_of(backend)
    assert template.ahead is not None
    return await waiting_of(template.ahead)


async def waiting_of(ahead: Ahead) -> Fork:
    await eventually(lambda: (fork := ahead.fork) is not None and fork.pid is not None and fork.pid.done())
    assert ahead.fork is not None
    return ahead.fork


async def pid_of(fork: Fork) -> int:
    assert fork.pid is not None
    return await fork.pid


async def test_the_next_container_is_the_fork_that_waits(backend: SandboxBackend, workshop: Workshop) -> None:
    request = workshop.request(CODE, use_template=True)
    first = await workshop.again(request)
    fork = await waiting(backend)
    second = await workshop.again(request)
    assert second.how == "fork"
    assert second.pid == await pid_of(fork)
    others = await waiting(backend)
    assert others is not fork
    seen = [value(await call(container)) for container in (first, second)]
    assert [name for name, _, _ in seen] == [first.id, second.id]
    assert seen[0][1] != seen[1][1]  # random streams
    for name, _, pid in seen:
        assert pid > 1, name


async def test_what_it_prints_is_its_containers_own(backend: SandboxBackend, workshop: Workshop) -> None:
    request = workshop.request("import os\n\ndef f(): os.write(1, b'from the descriptor\\n')", use_template=True)
    await workshop.again(request)
    await waiting(backend)
    container = await workshop.again(request)
    value(await call(container))
    await eventually(lambda: "from the descriptor" in printed_by(workshop, container))


def printed_by(workshop: Workshop, container: Container) -> str:
    return "".join(log.text for log in workshop.logs if log.container == container.id)


async def test_one_that_was_killed_while_it_waited_is_not_taken(backend: SandboxBackend, workshop: Workshop) -> None:
    request = workshop.request(CODE, use_template=True)
    await workshop.again(request)
    fork = await waiting(backend)
    killed = await pid_of(fork)
    os.kill(killed, 9)
    await eventually(lambda: not fork.usable)
    container = await workshop.again(request)
    assert container.how == "fork"
    assert container.pid != killed
    assert value(await call(container))[0] == container.id
    assert (await waiting(backend)).usable


async def test_several_at_once_have_one_each(backend: SandboxBackend, workshop: Workshop) -> None:
    request = workshop.request(CODE, use_template=True)
    await workshop.again(request)
    await waiting(backend)
    containers = await asyncio.gather(*(workshop.again(request) for _ in range(4)))
    assert len({container.pid for container in containers}) == 4
    assert {value(await call(container))[0] for container in containers} == {each.id for each in containers}


async def test_it_ends_with_its_template(backend: SandboxBackend, workshop: Workshop) -> None:
    container = await workshop.again(workshop.request(CODE, use_template=True))
    fork, template = await waiting(backend), template_of(backend)
    pid = await pid_of(fork)
    template.retire()
    await eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert value(await call(container))[0] == container.id  # its own containers live on
    await container.stop()
    assert backend._open_parts is not None
    launcher = backend._open_parts.launcher.pid
    await eventually(lambda: descendants_of(launcher) == [])
