"""The agent with real processes as containers: user code from a bundle, run by the real runner."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.services.gpu_agent.scene import Scene

from squall_gpu_agent.service import open_process_backend
from squall_gpu_agent.settings import AgentSettings
from squall_service.run import Running

pytestmark = pytest.mark.slow

CODE = b"""
import os, time

def double(x):
    print("doubling", x)
    return 2 * x

def crash():
    os._exit(3)

def sleep(seconds):
    time.sleep(seconds)

def fail():
    raise ValueError("user's fault")
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
        request = await scene.call(pool, function, arguments(21))
        result = await scene.result(request)
        assert result.outcome == "succeeded", result.error
        assert pickle.loads(result.payload) == 42
