"""Real sandboxes for tests: one base root for a whole run, a backend of its own for each test."""

from __future__ import annotations

import compileall
import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support import base_root as base

from squall.errors import ImageBuildError
from squall.spec import ImageSpec
from squall_gpu_agent.backend import Backend, OnText, Root
from squall_gpu_agent.backends.docker.backend import DockerBackend
from squall_gpu_agent.backends.gvisor.backend import GvisorBackend
from squall_gpu_agent.backends.sandbox.backend import SandboxBackend
from squall_gpu_agent.backends.sandbox.settings import SandboxSettings
from squall_images.eviction import Freed, Unwanted

PYTHON = Path("/usr/local/bin/python3")


class BaseRoots:
    """Images of a base root, perhaps of further layers, and of what the `env` steps declare."""

    def __init__(self, *layers: Path) -> None:
        self._layers = layers

    async def ensure_root(self, image: ImageSpec, on_line: OnText) -> Root:
        """See `squall_gpu_agent.backends.sandbox.settings.Roots`."""
        if image.python_version == "3.99":
            raise ImageBuildError("no Python 3.99 here", step="base", exit_code=1, output="")
        env = {name: str(value) for step in image.steps if step.kind == "env" for name, value in step.arguments.items()}
        return Root(image_id=image.id, python=PYTHON, site_packages=None, env=env, layers=self._layers)

    async def python_versions(self) -> tuple[str, ...]:
        """See `Roots`."""
        return (f"{sys.version_info[0]}.{sys.version_info[1]}",)

    def hold(self, image_id: str) -> Callable[[], None]:
        """See `Roots`."""
        return lambda: None

    def here(self) -> tuple[str, ...]:
        """See `Roots`."""
        return ()

    async def prune(self, unwanted: Unwanted, now: float, *, dry_run: bool) -> Freed:
        return Freed((), (), 0, 0)

    async def sweep(self, now: float) -> Freed:
        """See `Roots`."""
        return Freed((), (), 0, 0)

    def close(self) -> None:
        """See `Roots`."""


def shared_base_root(factory: pytest.TempPathFactory) -> Path:
    """Made once a test run, also by several workers."""
    folder = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    root = folder / "base-root"
    with (folder / "base-root.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            staging = folder / "base-root-staging"
            staging.mkdir()
            base.make(staging)
            compileall.compile_dir(staging / "usr/local/lib", quiet=2)
            staging.rename(root)
    return root


def sandbox_backend(data: Path, root: Path, **settings: Any) -> SandboxBackend:
    """Over that root."""
    return SandboxBackend(SandboxSettings(data_dir=data, memory_mib=4096, **settings), BaseRoots(root))


def gvisor_backend(data: Path, root: Path, **settings: Any) -> GvisorBackend:
    """Over that root."""
    return GvisorBackend(SandboxSettings(data_dir=data, memory_mib=4096, **settings), BaseRoots(root))


def docker_backend(data: Path, root: Path, **settings: Any) -> DockerBackend:
    """Over that root, by the engine that the docker command uses."""
    own = SandboxSettings(data_dir=data, memory_mib=4096, **settings)
    socket = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    return DockerBackend(own, BaseRoots(root), socket=Path(socket))


ISOLATING = [
    pytest.param("sandbox", marks=pytest.mark.root),
    pytest.param("gvisor", marks=pytest.mark.gvisor),
    pytest.param("docker", marks=[pytest.mark.root, pytest.mark.docker]),
]
"""Every backend that isolates."""


def isolating_backend(name: str, data: Path, root: Path, **settings: Any) -> Backend:
    """One of them."""
    made = {"sandbox": sandbox_backend, "gvisor": gvisor_backend, "docker": docker_backend}
    return made[name](data, root, **settings)
