"""The agent with real processes as containers: user code from a bundle, run by the real runner."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.services.gpu_agent.scene import FAST_RETRY, WORKSPACE, Scene

from squall.spec import MethodSpec, ScalingPolicy
from squall_contracts import subjects
from squall_contracts.blobs import blob_path, workspace_place
from squall_contracts.calls import ItemYielded
from squall_contracts.nodes import ClaimState
from squall_gpu_agent.service import open_process_backend
from squall_gpu_agent.settings import AgentSettings
from squall_service.run import Running

pytestmark = pytest.mark.slow

CODE = b"""
import os, sys, time

def double(x):
    print("doubling", x, flush=True)
    return 2 * x

def fail():
    raise ValueError("user's fault")

def crash():
    os._exit(3)

def forever():
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass

def count(n):
    for number in range(n):
        yield number

def large(n):
    return bytes(n)

class Model:
    def predict(self, x):
        return x + 1
"""


@asynccontextmanager
async def agent(scene: Scene, tmp_path: Path) -> AsyncIterator[Running]:
    settings = AgentSettings(data=str(tmp_path / "node-a"))
    async with scene.agent(open_process_backend(settings)) as running:
        yield running


def arguments(*args: Any) -> bytes:
    return pickle.dumps((args, {}))


async def test_user_code_runs_in_a_process(scene: Scene, tmp_path: Path) -> None:
    async with agent(scene, tmp_path):
        pool, function = await scene.ready("double", code=CODE)
        for number in range(3):
            result = await scene.result(await scene.call(pool, function, arguments(number)))
            assert result.outcome == "succeeded", result.error
            assert pickle.loads(result.payload) == 2 * number


async def test_an_exception_comes_back_as_itself_with_its_traceback(scene: Scene, tmp_path: Path) -> None:
    async with agent(scene, tmp_path):
        pool, function = await scene.ready("fail", code=CODE)
        result = await scene.result(await scene.call(pool, function, arguments()))
        assert result.error is not None
        assert (result.error["kind"], result.error["type"]) == ("user", "ValueError")
        assert "/root/app.py" in result.error["traceback"]
        assert repr(pickle.loads(result.payload)) == repr(ValueError("user's fault"))


async def test_a_process_that_exits_is_counted_as_a_loss_and_its_claim_is_deleted(scene: Scene, tmp_path: Path) -> None:
    async with agent(scene, tmp_path):
        function = await scene.function("crash", code=CODE)
        pool = await scene.pool(function)
        key = await scene.propose(pool, function)
        request = await scene.call(pool, function, arguments())
        await scene.gone(key)  # it is ready for too short a time to be seen
        counted = await scene.attempts(request)
        assert [(a.kind, a.infra_failures) for a in counted] == [("infra", 1)]
        assert "exited with code 3" in counted[0].reason
        await scene.queues(pool, 1)


async def test_code_that_ignores_its_time_limit_is_killed(scene: Scene, tmp_path: Path) -> None:
    async with agent(scene, tmp_path):
        pool, function = await scene.ready("forever", code=CODE, timeout_s=0.2)
        result = await scene.result(await scene.call(pool, function, arguments()))
        assert result.outcome == "timed_out"


async def test_inputs_of_one_process_run_at_the_same_time(scene: Scene, tmp_path: Path) -> None:
    async with agent(scene, tmp_path):
        pool, function = await scene.ready("double", code=CODE, scaling=ScalingPolicy(max_inputs=4))
        calls = [await scene.call(pool, function, arguments(number)) for number in range(20)]
        for number, request in enumerate(calls):
            assert pickle.loads((await scene.result(request)).payload) == 2 * number


async def test_a_method_of_a_class_runs(scene: Scene, tmp_path: Path) -> None:
    async with agent(scene, tmp_path):
        pool, function = await scene.ready("Model", code=CODE, is_class=True, methods=(MethodSpec("predict"),))
        result = await scene.result(await scene.call(pool, function, arguments(1), method="predict"))
        assert result.outcome == "succeeded", result.error
        assert pickle.loads(result.payload) == 2


async def test_a_generator_yields_to_its_reader(scene: Scene, tmp_path: Path) -> None:
    async with agent(scene, tmp_path):
        pool, function = await scene.ready("count", code=CODE, methods=(MethodSpec("", is_generator=True),))
        request = scene.request(pool, function, arguments(3), kind="generator")
        items: list[ItemYielded] = []
        await scene.bus.subscribe(
            subjects.items(scene.region, request.call), lambda message: items.append(ItemYielded.decode(message.data))
        )
        await scene.accept(request)
        assert (await scene.reply(request)).items == 3
        assert [pickle.loads(item.payload) for item in items] == [0, 1, 2]


async def test_a_result_of_20_mib_goes_through_the_blob_store(scene: Scene, tmp_path: Path) -> None:
    async with agent(scene, tmp_path):
        pool, function = await scene.ready("large", code=CODE)
        result = await scene.result(await scene.call(pool, function, arguments(20 << 20)))
        assert result.blob is not None
        sha256 = result.blob.partition(":")[0]
        stored = scene.blobs / workspace_place(WORKSPACE) / blob_path(sha256)
        assert len(pickle.loads(stored.read_bytes())) == 20 << 20


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            b"import not_there\ndef f(): pass\n",
            "import of app failed: ModuleNotFoundError: No module named 'not_there'",
        ),
        (b"def g(): pass\n", "import of app failed:"),
    ],
)
async def test_an_import_that_fails_ends_the_calls_of_an_ephemeral_app(
    scene: Scene, tmp_path: Path, code: bytes, reason: str
) -> None:
    async with agent(scene, tmp_path):
        function = await scene.function("f", code=code, ephemeral=True, retry=FAST_RETRY)
        pool = await scene.pool(function)
        request = await scene.call(pool, function, arguments())
        key = await scene.propose(pool, function)
        claim = await scene.claim_in(key, ClaimState.FAILED)
        assert claim.reason.startswith(reason)
        result = await scene.result(request)
        assert result.error is not None
        assert (result.outcome, result.error["kind"], result.error["phase"]) == ("failed", "user", "import")
