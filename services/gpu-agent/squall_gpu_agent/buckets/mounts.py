"""Buckets of containers: starts the process that serves each, and sees to its end.

Owns these processes. Keys go to them over stdin, and nowhere else; what they say goes to the container's log.
"""

from __future__ import annotations

import asyncio
import json
import secrets as random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squall.errors import InvalidError, NotFoundError, PermissionDeniedError, ServiceError
from squall.spec import BucketMount, FunctionSpec
from squall_contracts.functions import FunctionRecord
from squall_gpu_agent.backend import Log, MountedBucket, OnLog, StartFailed, StartFailureKind
from squall_gpu_agent.buckets import joining
from squall_gpu_agent.tasks import Tasks
from squall_service.secrets import Secrets

READY_S = 60.0
END_S = 630.0
"""For what a container wrote and did not close before it ended."""
LINE_BYTES = 1 << 20
_OF_THE_APP = {kind.code: kind for kind in (InvalidError, NotFoundError, PermissionDeniedError)}
"""What only another declaration, secret or bucket changes: calls of an ephemeral app fail instead of waiting."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Where containers of this machine may go."""

    allowed: tuple[str, ...]
    refused: tuple[str, ...]
    has_network: bool


class Served:
    """One process that serves a bucket."""

    def __init__(self, mount: BucketMount, process: asyncio.subprocess.Process, socket: Path) -> None:
        self.mount = mount
        self.process = process
        self.socket = socket


class Buckets:
    """Prepares them, and knows which container has which."""

    def __init__(
        self,
        secrets: Secrets,
        sockets: Path,
        spool: Path,
        tasks: Tasks,
        reach: Callable[[FunctionSpec], Reach | None],
    ) -> None:
        """`reach`: None for containers that are not isolated, and may go everywhere."""
        self._secrets, self._tasks = secrets, tasks
        self._sockets, self._spool = sockets, spool
        self._reach = reach
        self._held: dict[str, list[Served]] = {}

    async def of(self, container: str, function: FunctionRecord, on_log: OnLog) -> tuple[MountedBucket, ...]:
        """The buckets, each looked at and waiting to be mounted. Raises `SquallError`, `StartFailed`."""
        mounts = function.spec.buckets
        if not mounts:
            return ()
        if why := await asyncio.to_thread(joining.unusable):
            raise ServiceError(f"buckets cannot be mounted on this machine: {why}")
        reach = self._reach(function.spec)
        if reach is not None and not reach.has_network:
            raise PermissionDeniedError(
                "containers of this machine have no network, and so no buckets",
                fix="The operator can give them one with SQUALL_GPU_AGENT_SANDBOX_NETWORK.",
            )
        await asyncio.to_thread(self._spool.mkdir, 0o700, True, True)
        for mount in mounts:
            wanted = (mount.secret,) if mount.secret else ()
            variables, _ = await self._secrets.of(wanted, function.workspace)
            served = await self._start(mount, variables, reach)
            self._held.setdefault(container, []).append(served)
            await self._until_ready(served)
            self._tasks.start(_listen(served, container, on_log), "listening to a bucket")
        held = self._held[container]
        return tuple(MountedBucket(path=s.mount.path, read_only=s.mount.read_only, server=s.socket) for s in held)

    def forget(self, container: str) -> None:
        """It has ended, or did not start. What it has written is stored first."""
        for served in self._held.pop(container, ()):
            self._tasks.start(_end(served), "ending a bucket")

    async def _start(self, mount: BucketMount, variables: dict[str, str], reach: Reach | None) -> Served:
        socket = self._sockets / f"b-{random.token_hex(4)}"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-m", "squall_gpu_agent.buckets"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={},  # the store would take keys of the machine from them
            limit=LINE_BYTES,
            start_new_session=True,  # a terminal's Ctrl-C must not lose what is not stored yet
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(self._settings(mount, variables, socket, reach)).encode() + b"\n")
        return Served(mount, process, socket)

    def _settings(
        self, mount: BucketMount, variables: dict[str, str], socket: Path, reach: Reach | None
    ) -> dict[str, Any]:
        return {
            "bucket": {
                "bucket": mount.bucket,
                "endpoint": mount.endpoint,
                "prefix": mount.prefix,
                "variables": variables,
                "requester_pays": mount.requester_pays,
                "force_path_style": mount.force_path_style,
            },
            "rules": None if reach is None else {"allowed": reach.allowed, "denied": reach.refused},
            "socket": str(socket),
            "spool": str(self._spool.absolute()),
        }

    async def _until_ready(self, served: Served) -> None:
        assert served.process.stdout is not None
        try:
            async with asyncio.timeout(READY_S):
                line = await served.process.stdout.readline()
        except TimeoutError:
            raise ServiceError(f"bucket {served.mount.bucket!r} did not answer within {READY_S:g} s") from None
        words = json.loads(line) if line else {}
        if "error" in words:
            raise _failure(*words["error"])
        if "ready" not in words:
            said = words.get("said", "it ended")
            raise ServiceError(f"bucket {served.mount.bucket!r} cannot be served: {said}")


def _failure(code: str, message: str, fix: str) -> Exception:
    kind = _OF_THE_APP.get(code)
    if kind is None:
        return ServiceError(message, fix=fix)
    return StartFailed(StartFailureKind.USER_CODE, f"{message} ({fix})", type_name=kind.__name__)


async def _listen(served: Served, container: str, on_log: OnLog) -> None:
    assert served.process.stdout is not None
    async for line in served.process.stdout:
        said = json.loads(line).get("said", "")
        text = f"squall: bucket {served.mount.bucket} at {served.mount.path}: {said}\n"
        on_log(Log(container=container, stream="system", text=text))


async def _end(served: Served) -> None:
    """It ends by itself when the container's mounts are gone; one that was never mounted is told to."""
    assert served.process.stdin is not None
    served.process.stdin.close()
    try:
        async with asyncio.timeout(END_S):
            await served.process.wait()
    except TimeoutError:
        served.process.kill()
        await served.process.wait()
    served.socket.unlink(missing_ok=True)
