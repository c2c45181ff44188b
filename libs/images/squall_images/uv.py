"""Runs uv on this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from squall.errors import ImageBuildError

OUTPUT_LINES_KEPT = 60
OnLine = Callable[[str], None]


async def run(step: str, command: Sequence[str], cache: Path, on_line: OnLine, env: Mapping[str, str]) -> None:
    """Run it, passing its lines on as they come. Raises `ImageBuildError` with the step, its output and exit code."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**own_environment(), **env, "UV_CACHE_DIR": str(cache)},
        cwd=cache.parent,
    )
    kept: deque[str] = deque(maxlen=OUTPUT_LINES_KEPT)
    try:
        assert process.stdout is not None
        async for raw in process.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            kept.append(line)
            on_line(line)
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
            await process.stdout.read()  # type: ignore[union-attr]  # closes our end, too
    if code != 0:
        output = "\n".join(kept)
        raise ImageBuildError(
            f"image step `{step}` failed with exit code {code}:\n{output}", step=step, exit_code=code, output=output
        )


def own_environment() -> dict[str, str]:
    """This process's, so that its package index and proxy settings hold, without what is none of a build's business."""
    own = os.environ  # noqa: TID251  # a child's environment, not a setting of ours
    hidden = ("SQUALL_", "PYTHON", "VIRTUAL_ENV", "CONDA_", "OTEL_")
    kept = {name: value for name, value in own.items() if not name.startswith(hidden)}
    return {**kept, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}


def index_settings() -> dict[str, str]:
    """What of it says where packages come from: builds in a room of their own need that too."""
    names = ("UV_INDEX", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_INDEX_URL", "UV_INDEX_STRATEGY")
    own = own_environment()
    return {name: own[name] for name in names if name in own}


def program() -> Path:
    """The uv of the environment that this runs in, or the one on PATH."""
    beside = Path(sys.executable).parent / "uv"
    if beside.exists():
        return beside
    found = shutil.which("uv")
    if found is None:
        raise ImageBuildError("uv is not installed", fix="Install squall-platform[gpu-agent], which brings uv.")
    return Path(found)
