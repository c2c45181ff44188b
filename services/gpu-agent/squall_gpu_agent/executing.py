"""Commands that people run beside a container's runner: its variables, its folder, its packages; no terminal.

Owns the processes that it starts: none outlives its time, its output limit or this agent's orderly stop.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence

from squall_gpu_agent.backend import Container

CHUNK_BYTES = 32 * 1024
MAX_OUTPUT_BYTES = 8 << 20
MAX_S = 3600.0
Tell = Callable[[str, bytes], None]


class Executing:
    """Runs commands."""

    async def run(
        self, container: Container, words: Sequence[str], timeout_s: float, tell: Tell
    ) -> tuple[int | None, str]:
        """The exit status, or why there is none. What it prints is told as it comes."""
        inside = container.inside
        if inside is None:
            return None, f"commands cannot be run in {container.id}: {container.not_inside}"
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                cwd=inside.cwd,
                env=dict(inside.env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            return None, f"{words[0]!r} cannot be started: {error}"
        output = _Output(process.pid, tell)
        try:
            async with asyncio.timeout(min(timeout_s, MAX_S)), asyncio.TaskGroup() as tasks:
                tasks.create_task(output.copy(process.stdout, "stdout"))
                tasks.create_task(output.copy(process.stderr, "stderr"))
                status = await process.wait()
        except TimeoutError:
            return None, f"it had not ended after {min(timeout_s, MAX_S):g} s and was killed"
        finally:
            _kill(process.pid)
        if output.left < 0:
            return None, f"it printed more than {MAX_OUTPUT_BYTES >> 20} MiB and was killed"
        return status, ""


class _Output:
    """What a command prints, up to what anybody would read."""

    def __init__(self, pid: int, tell: Tell) -> None:
        self.left = MAX_OUTPUT_BYTES
        self._pid = pid
        self._tell = tell

    async def copy(self, stream: asyncio.StreamReader | None, name: str) -> None:
        """Tell everything of one stream."""
        assert stream is not None
        while data := await stream.read(CHUNK_BYTES):
            self.left -= len(data)
            if self.left < 0:
                _kill(self._pid)
                return
            self._tell(name, data)


def _kill(pid: int) -> None:
    """The whole session of the command: what it left running too."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # nothing of it is left
