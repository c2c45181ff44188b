"""Runs build commands in the root of an image, as a room of its own (`build_init`); what they change becomes a folder.

Owns the processes and the scratch folders of builds. Knows neither steps nor keys.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from squall.errors import ImageBuildError
from squall_images import build_init, build_limits, egress
from squall_images.build_limits import Disk, StepLimits
from squall_images.egress import EgressRules
from squall_images.trees import remove
from squall_isolation import seccomp
from squall_isolation.cgroups import Group

OUTPUT_LINES_KEPT = 60
LINE_LIMIT_BYTES = 1 << 20
HANDSHAKE_TIMEOUT_S = 20.0
PROXY = f"http://127.0.0.1:{egress.PORT}"
PROXY_VARIABLES = dict.fromkeys(egress.VARIABLES, PROXY)
OWN = "/.squall"
"""Where a build finds what is brought along; nothing below it stays in the image."""

SECRETS = f"{OWN}/secrets"
BLOT, BLOT_FROM = "***", 4
"""Shorter values would blot out words that have nothing to do with them."""

OnLine = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A folder or file of this machine inside of the room."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One command."""

    command: Sequence[str]
    env: Mapping[str, str]
    workdir: str = "/root"
    binds: tuple[Bind, ...] = ()
    hidden: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Secrets: variables of this command, and files on a memory file system in `SECRETS`. What it prints of them is
    blotted out."""
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
    limits: StepLimits = field(default_factory=StepLimits)
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

        blotted = blotter(work.hidden)

        def heard(line: str) -> None:
            kept.append(blotted(line))
            on_line(kept[-1])

        try:
            async with build_limits.grouped(self.limits) as group:
                try:
                    async with asyncio.timeout(work.timeout_s):
                        code, why = await self._run(work, heard, group)
                except TimeoutError:
                    code, why = 124, f"it took more than {work.timeout_s:g} s"
                why = why or (self.limits.why(group) if code else "")
        finally:
            await asyncio.to_thread(self._tidy)
        if why:
            kept.append(f"stopped: {why}")
            on_line(kept[-1])
        if code != 0:
            output = "\n".join(kept)
            raise ImageBuildError(
                f"image step `{step}` failed with exit code {code}:\n{output}",
                step=step,
                exit_code=code,
                output=output,
            )

    async def _run(self, work: Work, on_line: OnLine, group: Group | None) -> tuple[int, str]:
        """The exit code, and the limit that was reached."""
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
                if group is not None:
                    await asyncio.to_thread(group.take, process.pid)  # before it has its order
                written = (self.changes, *(bind.source for bind in work.binds if not bind.read_only))
                disk = await asyncio.to_thread(Disk, self.limits.disk_mib, *written)
                code = await self._accompany(process, ours, work, on_line, disk)
                if await asyncio.to_thread(disk.exceeded):
                    return code or 1, self.limits.disk_words
                return code, ""
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):  # it may have ended a moment ago
                        os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()
                    await process.stdout.read()  # type: ignore[union-attr]  # ends with the last process of the room

    async def _accompany(
        self, process: asyncio.subprocess.Process, ours: socket.socket, work: Work, on_line: OnLine, disk: Disk
    ) -> int:
        ours.settimeout(HANDSHAKE_TIMEOUT_S)
        order = json.dumps(self._order(work)).encode() + b"\n"
        await asyncio.to_thread(ours.sendall, order)
        _, descriptors, _, _ = await asyncio.to_thread(socket.recv_fds, ours, 1, 1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_lines(process, on_line))
            watching = tasks.create_task(disk.watch(process.kill))
            if descriptors:
                async with egress.serving(socket.socket(fileno=descriptors[0]), self.rules):
                    code = await process.wait()
            else:
                code = await process.wait()  # it says on its output why there is no room
            watching.cancel()
        return code

    def _order(self, work: Work) -> dict[str, object]:
        variables = {**(PROXY_VARIABLES if work.proxied else {}), **work.env, **work.hidden}
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
            "secrets": [{"target": SECRETS, "values": dict(work.hidden)}] if work.hidden else [],
            "first_id": self.first_id,
            "port": egress.PORT,
            "file_bytes": self.limits.disk_mib << 20,
            "filter": base64.b64encode(seccomp.program(os.uname().machine, builds=True)).decode(),
        }

    def _prepare(self) -> None:
        for name in ("fs", "work", "mounts"):
            (self.staging / name).mkdir(parents=True, exist_ok=True)

    def _tidy(self) -> None:
        """Remove what is none of the layer's: the places where things were brought along."""
        for name in ("work", "mounts", "empty"):
            remove(self.staging / name)
        remove(self.changes / OWN.lstrip("/"))


def blotter(hidden: Mapping[str, str]) -> Callable[[str], str]:
    """Takes secrets out of a line of output, those of several lines line by line."""
    parts = {part.strip() for value in hidden.values() for part in (value, *value.splitlines())}
    known = sorted((part for part in parts if len(part) >= BLOT_FROM), key=len, reverse=True)
    if not known:
        return lambda line: line
    pattern = re.compile("|".join(map(re.escape, known)))
    return lambda line: pattern.sub(BLOT, line)


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
