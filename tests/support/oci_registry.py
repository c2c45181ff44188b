"""A registry of images for tests: Debian's docker-registry on a folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.eventually import eventually


@contextlib.asynccontextmanager
async def an_oci_registry(folder: Path, host: str = "127.0.0.1", *, removes: bool = True) -> AsyncIterator[str]:
    """Its address as a setting. Skips the test where the program is not installed."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("needs docker-registry (Debian's package)")
    folder.mkdir(parents=True)
    with socket.create_server((host, 0)) as free:
        port = free.getsockname()[1]
    settings = folder / "config.yml"
    settings.write_text(
        f"version: 0.1\nlog: {{level: error}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}, delete: {{enabled: {str(removes).lower()}}}}}\n"
        f"http: {{addr: '{host}:{port}'}}\n"
    )
    process = await asyncio.create_subprocess_exec(
        program,
        "serve",
        str(settings),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await eventually(lambda: asyncio.to_thread(_answers, host, port), within_s=20)
        yield f"http://{host}:{port}/test"
    finally:
        process.kill()
        await process.wait()


def _answers(host: str, port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/v2/", timeout=5):
            return True
    except urllib.error.URLError:
        return False
