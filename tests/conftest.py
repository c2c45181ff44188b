"""What every test shares: markers that skip with a reason where the machine lacks what they need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest


def missing_root() -> str | None:
    """Why a test marked `root` cannot run here, or None."""
    if sys.platform != "linux":
        return "needs Linux"
    return None if os.geteuid() == 0 else "needs root"


@cache
def missing_docker() -> str | None:
    """Why a test marked `docker` cannot run here, or None."""
    client = shutil.which("docker")
    if client is None:
        return "needs the docker command"
    try:
        answer = subprocess.run([client, "version"], capture_output=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return "the container engine does not answer"
    return None if answer.returncode == 0 else "needs a running container engine"


def missing_gpu() -> str | None:
    """Why a test marked `gpu` cannot run here, or None."""
    return None if Path("/dev/nvidiactl").exists() else "needs an NVIDIA GPU"


def missing_runsc() -> str | None:
    """Why a test marked `gvisor` cannot run here, or None."""
    return missing_root() or (None if shutil.which("runsc") else "needs gVisor's runsc")


NEEDS = {"root": missing_root, "docker": missing_docker, "gpu": missing_gpu, "gvisor": missing_runsc}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose marker names something that this machine does not have."""
    for marker, missing in NEEDS.items():
        if item.get_closest_marker(marker) and (reason := missing()):
            pytest.skip(reason)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings of the person who runs it."""
    for name in list(os.environ):
        if name.startswith(("SQUALL_", "OTEL_")):
            monkeypatch.delenv(name)
