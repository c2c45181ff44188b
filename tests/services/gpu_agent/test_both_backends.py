"""Plain processes and sandboxes on one machine: which of the two makes a container, and what the machine says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.services.gpu_agent.fake_backend import FakeBackend, output

from squall.spec import CodeRef, FunctionSpec, ImageSpec, ImageStep
from squall_gpu_agent import service
from squall_gpu_agent.backend import ContainerRequest, Isolation, StartFailed, StartFailureKind
from squall_gpu_agent.backends.both import BothBackend
from squall_gpu_agent.settings import AgentSettings

PLAIN = ImageSpec(steps=(ImageStep(kind="pip_install", arguments={"packages": ["numpy"]}),))
COMMANDS = ImageSpec(steps=(ImageStep(kind="run_commands", arguments={"commands": ["make"]}),))
THERE = ImageSpec(steps=(ImageStep(kind="apt_install", arguments={"packages": ["dpkg", "libc6:amd64"]}),))
NOT_THERE = ImageSpec(steps=(ImageStep(kind="apt_install", arguments={"packages": ["dpkg", "no-such-package"]}),))


async def code(container: object, request: object) -> object:
    return output()


class Both:
    """The two, and how often sandboxes were opened."""

    def __init__(self) -> None:
        self.processes, self.sandboxes = FakeBackend({"f": code}), FakeBackend({"f": code}, Isolation.SANDBOX)  # type: ignore[dict-item]
        self.opened = 0
        self.backend = BothBackend(self.processes, self._open)

    def _open(self) -> FakeBackend:
        self.opened += 1
        return self.sandboxes

    async def start(self, image: ImageSpec = PLAIN, isolation: str = "process") -> None:
        spec = FunctionSpec(name="f", code=CodeRef("sha", "app", "f"), image=image, isolation=isolation)
        request = ContainerRequest(container_id="co-1", app_id="ap", function_id="fu", spec=spec, code_dir=Path("/x"))
        await self.backend.start(request, lambda log: None)


@pytest.mark.parametrize(
    ("image", "isolation", "sandboxed"),
    [
        (PLAIN, "process", False),
        (THERE, "process", False),
        (NOT_THERE, "process", True),
        (PLAIN, "sandbox", True),
        (COMMANDS, "process", True),  # published by an older program
        (COMMANDS, "sandbox", True),
    ],
)
async def test_a_container_is_a_sandbox_if_its_function_or_image_needs_one(
    image: ImageSpec, isolation: str, sandboxed: bool
) -> None:
    both = Both()
    await both.start(image, isolation)
    await both.backend.ensure_root(image, print)
    assert (len(both.processes.containers), len(both.sandboxes.containers)) == ((0, 1) if sandboxed else (1, 0))
    if isolation == "process":  # an image alone says nothing of its function
        assert (both.processes.ensured, both.sandboxes.ensured) == (([], [image]) if sandboxed else ([image], []))


async def test_sandboxes_are_opened_once_and_only_when_they_are_needed() -> None:
    both = Both()
    capabilities = await both.backend.probe()
    await both.start()
    assert both.opened == 0
    assert capabilities.backends == ("process", "sandbox")
    assert capabilities.isolation is Isolation.SANDBOX
    await both.start(COMMANDS)
    await both.start(COMMANDS)
    assert both.opened == 1
    await both.backend.close()
    assert both.processes.closed
    assert both.sandboxes.closed


async def test_a_machine_that_cannot_make_them_after_all_says_so_and_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = Both()

    async def refused() -> object:
        raise StartFailed(StartFailureKind.INFRA, "mount: not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(both.sandboxes, "probe", refused)
        with pytest.raises(StartFailed, match="sandboxes cannot be made here: mount: not permitted"):
            await both.start(COMMANDS)
    await both.start()
    await both.start(COMMANDS)
    assert len(both.sandboxes.containers) == 1


async def test_sandboxes_of_a_start_that_was_given_up_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    both, trying = Both(), asyncio.Event()

    async def never() -> object:
        trying.set()
        return await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(both.sandboxes, "probe", never)
        async with asyncio.TaskGroup() as tasks:
            start = tasks.create_task(both.start(COMMANDS))
            await trying.wait()
            start.cancel()
    assert both.sandboxes.closed
    await both.start(COMMANDS)
    assert both.opened == 2


@pytest.mark.parametrize("lacking", ["", "they need root"])
async def test_what_a_machine_lacks_is_told_beside_its_processes(
    lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.machine, "lacking", lambda: lacking)
    backend = await service.open_backend(AgentSettings(data=str(tmp_path), backend="both"))
    try:
        found = await backend.probe()
    finally:
        await backend.close()
    assert found.backends == (("process",) if lacking else ("process", "sandbox"))
    assert any("they need root" in note for note in found.notes) is bool(lacking)
