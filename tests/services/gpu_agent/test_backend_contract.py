"""What the agent's call path relies on in any backend; the fake one that most of its tests use passes the same."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.docker.sandboxes import ISOLATING, isolating_backend, shared_base_root
from tests.services.gpu_agent.fake_backend import FakeBackend, FakeContainer, failed, output
from tests.support.eventually import eventually

from squall.spec import CodeRef, FunctionSpec
from squall_gpu_agent.backend import (
    Backend,
    Container,
    ContainerRequest,
    End,
    Failed,
    FailureKind,
    InputRequest,
    Item,
    Log,
    Lost,
    NotBegun,
    Output,
)
from squall_gpu_agent.service import open_process_backend
from squall_gpu_agent.settings import AgentSettings

pytestmark = pytest.mark.slow

CALL = "fc-01m806gy9p80mq67vgcdfb1x01"
CODE = """
import time

def f(what):
    print("running", what, flush=True)
    if what == "raise":
        raise ValueError("boom")
    if what == "wait":
        time.sleep(60)
    return what

def g(what):
    for number in range(3):
        yield number
"""


async def f(container: FakeContainer, request: InputRequest) -> End:
    (what,), _ = pickle.loads(request.payload or b"")
    log = Log(container=container.id, stream="stdout", text=f"running {what}\n", call=request.call, index=request.index)
    container.on_log(log)
    if what == "raise":
        return failed("boom")
    if what == "wait":
        await asyncio.Event().wait()
    return output(pickle.dumps(what))


async def g(container: FakeContainer, request: InputRequest) -> End:
    for number in range(3):
        container.yield_item(request, number, pickle.dumps(number))
    return output(pickle.dumps(None), items=3)


@pytest.fixture(params=["fake", "process", *ISOLATING])
async def backend(
    request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Backend]:
    backend: Backend = FakeBackend({"f": f, "g": g})
    if request.param == "process":
        backend = open_process_backend(AgentSettings(data=str(tmp_path / "data")))
    elif request.param != "fake":
        backend = isolating_backend(request.param, tmp_path / "data", shared_base_root(tmp_path_factory))
    yield backend
    await backend.close()


async def started(backend: Backend, tmp_path: Path, name: str = "f") -> tuple[Container, list[Log]]:
    code = tmp_path / "code" / "root"
    code.mkdir(parents=True)
    (code / "app.py").write_text(CODE)
    spec = FunctionSpec(name=name, code=CodeRef("sha", "app", name))
    request = ContainerRequest(container_id="ta-1", app_id="ap-1", function_id="fu-1", spec=spec, code_dir=code.parent)
    logs: list[Log] = []
    return await backend.start(request, logs.append), logs


def asked(what: str, index: int = 0) -> InputRequest:
    return InputRequest(call=CALL, index=index, payload=pickle.dumps(((what,), {})))


async def test_an_input_that_returns_is_output_and_its_prints_came_before(backend: Backend, tmp_path: Path) -> None:
    container, logs = await started(backend, tmp_path)
    end = await container.run(asked("hello"))
    assert isinstance(end, Output)
    assert end.payload is not None
    assert pickle.loads(end.payload) == "hello"
    assert "running hello\n" in "".join(log.text for log in logs if log.call == CALL)
    assert container.running == frozenset()


async def test_an_input_that_raises_is_failed_and_the_container_lives_on(backend: Backend, tmp_path: Path) -> None:
    container, _ = await started(backend, tmp_path)
    end = await container.run(asked("raise"))
    assert isinstance(end, Failed)
    assert (end.kind, end.type_name, end.message) == (FailureKind.USER, "ValueError", "boom")
    assert isinstance(await container.run(asked("again")), Output)


async def test_a_cancelled_input_ends_as_cancelled_and_the_container_lives_on(backend: Backend, tmp_path: Path) -> None:
    container, logs = await started(backend, tmp_path)
    async with asyncio.TaskGroup() as group:
        run = group.create_task(container.run(asked("wait")))
        await eventually(lambda: any("running wait" in log.text for log in logs))
        assert container.running == {(CALL, 0)}
        container.cancel(CALL, 0)
    end = run.result()
    assert isinstance(end, Failed)
    assert end.kind is FailureKind.CANCELLED
    assert isinstance(await container.run(asked("again")), Output)


async def test_inputs_of_a_killed_container_are_lost_and_everybody_learns_why(backend: Backend, tmp_path: Path) -> None:
    container, logs = await started(backend, tmp_path)
    async with asyncio.TaskGroup() as group:
        run = group.create_task(container.run(asked("wait")))
        waits = [group.create_task(container.wait()) for _ in range(2)]
        await eventually(lambda: any("running wait" in log.text for log in logs))
        container.kill("killed by a test")
        container.kill("twice")
    end = run.result()
    assert isinstance(end, Lost)
    assert [wait.result() for wait in waits] == [end.exit, end.exit]
    assert (end.exit.signal, end.exit.reason) == (9, "killed by a test")
    assert await container.run(asked("late")) == NotBegun(exit=end.exit)


async def test_a_stopped_container_ends_by_itself(backend: Backend, tmp_path: Path) -> None:
    container, _ = await started(backend, tmp_path)
    exit = await container.stop(grace_s=5)
    assert (exit.code, exit.signal, exit.oom) == (0, None, False)
    assert await container.wait() == exit


async def test_items_come_in_order_before_the_end(backend: Backend, tmp_path: Path) -> None:
    container, _ = await started(backend, tmp_path, "g")
    items: list[Item] = []
    end = await container.run(asked("go"), items.append)
    assert isinstance(end, Output)
    assert end.items == 3
    assert [(item.seq, pickle.loads(item.payload or b"")) for item in items] == [(0, 0), (1, 1), (2, 2)]
