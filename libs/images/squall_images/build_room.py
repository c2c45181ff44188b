"""Runs build commands in the root of an image, as a room of its own (`build_init`); what they change becomes a folder.

Owns the processes and the scratch folders of builds. Knows neither steps nor keys.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from squall.errors import ImageBuildError
from squall_images import build_init, egress
from squall_images.egress import EgressRules

OUTPUT_LINES_KEPT = 60
LINE_LIMIT_BYTES = 1 << 20
HANDSHAKE_TIMEOUT_S = 20.0
PROXY = f"http://127.0.0.1:{egress.PORT}"
PROXY_VARIABLES = dict.fromkeys(
    ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"), PROXY
)
OWN = "/.squall"
"""Where a build finds what is brought along; nothing below it stays in the image."""

OnLine = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A folder or file of this machine inside of the room."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """Values that a build may read and that nothing keeps: files on a memory file system."""

    target: str
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One command."""

    command: Sequence[str]
    env: Mapping[str, str]
    workdir: str = "/root"
    binds: tuple[Bind, ...] = ()
    secrets: tuple[Secret, ...] = ()
    timeout_s: float = 3600.0
    proxied: bool = True
    """Whether programs are told of the way out; without it there is none for them."""


@dataclass(frozen=True, slots=True)
class Room:
    """Layers below, and the folder that changes go to."""

    layers: tuple[Path, ...]
    """Bottom first."""
    staging: Path
    """Gets `fs` (the changes)."""
    rules: EgressRules = field(default_factory=EgressRules)
    first_id: int = 1_879_048_192
    """First of the 65,536 ids of this machine that the room's users are; far above those that systems hand out."""

    @property
    def changes(self) -> Path:
        """What commands wrote, as overlayfs stores it."""
        return self.staging / "fs"

    async def run(self, step: str, work: Work, on_line: OnLine) -> None:
        """Run a command to its end. Raises `ImageBuildError` with the step, the end of its output and its exit code."""
        await asyncio.to_thread(self._prepare)
        kept: deque[str] = deque(maxlen=OUTPUT_LINES_KEPT)

        def heard(line: str) -> None:
            kept.append(line)
            on_line(line)

        try:
            async with asyncio.timeout(work.timeout_s):
                code = await self._run(work, heard)
        except TimeoutError:
            code, limit = 124, f"{work.timeout_s:g}"
            kept.append(f"stopped after {limit} s")
        finally:
            await asyncio.to_thread(self._tidy)
        if code != 0:
            output = "\n".join(kept)
            raise ImageBuildError(
                f"image step `{step}` failed with exit code {code}:\n{output}",
                step=step,
                exit_code=code,
                output=output,
            )

    async def _run(self, work: Work, on_line: OnLine) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    _START,
                    str(Path(build_init.__file__)),
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    pass_fds=(theirs.fileno(),),
                    limit=LINE_LIMIT_BYTES,
                    env={"PATH": "/usr/bin:/bin"},
                    start_new_session=True,
                )
            try:
                return await self._accompany(process, ours, work, on_line)
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()
                    await process.stdout.read()  # type: ignore[union-attr]  # ends with the last process of the room

    async def _accompany(
        self, process: asyncio.subprocess.Process, ours: socket.socket, work: Work, on_line: OnLine
    ) -> int:
        ours.settimeout(HANDSHAKE_TIMEOUT_S)
        order = json.dumps(self._order(work)).encode() + b"\n"
        await asyncio.to_thread(ours.sendall, order)
        _, descriptors, _, _ = await asyncio.to_thread(socket.recv_fds, ours, 1, 1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_lines(process, on_line))
            if descriptors:
                async with egress.serving(socket.socket(fileno=descriptors[0]), self.rules):
                    return await process.wait()
            return await process.wait()  # it says on its output why there is no room

    def _order(self, work: Work) -> dict[str, object]:
        variables = {**(PROXY_VARIABLES if work.proxied else {}), **work.env}
        return {
            "command": list(work.command),
            "env": variables,
            "workdir": work.workdir,
            "lowers": [str(layer) for layer in self.layers],
            "upper_parent": str(self.staging),
            "work": str(self.staging / "mounts"),
            "binds": [
                {"source": str(bind.source), "target": bind.target, "read_only": bind.read_only} for bind in work.binds
            ],
            "secrets": [{"target": secret.target, "values": dict(secret.values)} for secret in work.secrets],
            "first_id": self.first_id,
            "port": egress.PORT,
        }

    def _prepare(self) -> None:
        for name in ("fs", "work", "mounts"):
            (self.staging / name).mkdir(parents=True, exist_ok=True)

    def _tidy(self) -> None:
        """Remove what is none of the layer's: the places where things were brought along."""
        for name in ("work", "mounts", "empty"):
            shutil.rmtree(self.staging / name, ignore_errors=True)
        shutil.rmtree(self.changes / OWN.lstrip("/"), ignore_errors=True)


async def _lines(process: asyncio.subprocess.Process, on_line: OnLine) -> None:
    assert process.stdout is not None
    while True:
        try:
            raw = await process.stdout.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                on_line(error.partial.decode("utf-8", "replace"))
            return
        except asyncio.LimitOverrunError as error:
            raw = await process.stdout.read(error.consumed)
        # Progress bars rewrite their line: the last state of it is the line.
        on_line(raw.decode("utf-8", "replace").rstrip("\r\n").rsplit("\r", 1)[-1])


_START = "import os,sys,runpy; fd=int(sys.argv[2]); os.dup2(fd,3); fd==3 or os.close(fd); os.set_inheritable(3,False); \
runpy.run_path(sys.argv[1],run_name='__main__')"
"""Puts the socket where build_init looks for it."""
