"""Commands that people run beside a container's runner: its variables, its folder, its packages; no terminal.

Owns the commands that it starts: none outlives its container, its time, its output limit or this agent.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence

from squall_gpu_agent.backend import CommandFailed, Container, Inside

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
        if container.inside is None:
            return None, f"commands cannot be run in {container.id}: {container.not_inside}"
        command = _Command(tell)
        try:
            await command.start(container.inside, words)
        except CommandFailed as error:
            return None, str(error)
        try:
            async with asyncio.timeout(min(timeout_s, MAX_S)), asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(command.end_with(container))
                await command.finished()
                watching.cancel()
        except TimeoutError:
            return None, f"it had not ended after {min(timeout_s, MAX_S):g} s and was killed"
        finally:
            command.kill()
        return command.result()


class _Command:
    """One of them, with what it prints."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._pid = 0
        self._left = MAX_OUTPUT_BYTES
        self._killed_because = ""
        self._status: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._outputs: list[tuple[str, asyncio.StreamReader]] = []

    async def start(self, inside: Inside, words: Sequence[str]) -> None:
        """Raises `CommandFailed`."""
        writing = [await self._pipe(name) for name in ("stdout", "stderr")]
        try:
            self._pid = await inside.start(words, writing, self._on_end)
        finally:
            for descriptor in writing:
                os.close(descriptor)

    async def finished(self) -> None:
        """It has ended, and so has its output, which its children may hold open."""
        async with asyncio.TaskGroup() as tasks:
            for name, reader in self._outputs:
                tasks.create_task(self._copy(name, reader))
            await self._status

    async def end_with(self, container: Container) -> None:
        """Kill it when the container ends."""
        exit = await container.wait()
        self.kill(f"its container ended: {exit.reason}")

    def kill(self, why: str = "") -> None:
        """The whole session of the command: what it left running too."""
        self._killed_because = self._killed_because or why
        if self._pid > 1:
            try:
                os.killpg(self._pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass  # nothing of it is left

    def result(self) -> tuple[int | None, str]:
        """As `Executing.run`."""
        if self._killed_because:
            return None, self._killed_because
        status = self._status.result()
        if status is None:
            return None, "it was killed: what starts processes for the agent has ended"
        return os.waitstatus_to_exitcode(status), ""

    async def _pipe(self, name: str) -> int:
        """The end to write to."""
        read, write = os.pipe()
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb", 0))
        self._outputs.append((name, reader))
        return write

    async def _copy(self, name: str, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(CHUNK_BYTES):
            self._left -= len(data)
            if self._left < 0:
                self.kill(f"it printed more than {MAX_OUTPUT_BYTES >> 20} MiB and was killed")
                return
            self._tell(name, data)

    def _on_end(self, status: int | None) -> None:
        if not self._status.done():
            self._status.set_result(status)
