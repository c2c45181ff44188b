"""The running nats-server of the embedded platform: waits until it listens, starts it again when it ended."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Iterator, Sequence

from squall.errors import LocalPlatformError
from squall_bus import BusSettings
from squall_bus.settings import BATCH_FROM
from squall_contracts import roles
from squall_embedded.bus_program import BusProgram
from squall_embedded.children import Child
from squall_embedded.staging import Staging

READY_TIMEOUT_S = 15.0
CONNECT_TIMEOUT_S = 30.0
"""Servers that replicate listen long before they have agreed who leads; on a busy machine that took more than 5 s."""
STOP_GRACE_S = 5.0
_POLL_S = 0.002
BATCH_FROM_IN_MEMORY = 5
"""Records from which on a batch is cheaper than single ones where it is staged in memory."""


class BusServers:
    """All servers of one platform: one, or three that replicate."""

    def __init__(self, servers: Sequence[BusServer]) -> None:
        self._servers = tuple(servers)

    def __iter__(self) -> Iterator[BusServer]:
        return iter(self._servers)

    def settings(self, role: str, node: str = "") -> BusSettings:
        """How a role connects: with its own user and its own inbox."""
        user = roles.user_name(role, node)
        return BusSettings(
            url=",".join(server.url for server in self),
            user=user,
            password=self._servers[0].password(user),
            inbox_prefix=roles.inbox_prefix(role, node),
            name=f"squall-{user}",
            replicas=len(self._servers),
            connect_timeout_s=CONNECT_TIMEOUT_S,
            batch_from=BATCH_FROM_IN_MEMORY if self._servers[0].staging.in_memory else BATCH_FROM,
        )

    async def ready(self) -> None:
        """Waits until all listen."""
        await asyncio.gather(*(server.ready() for server in self))

    async def stage_in_memory(self) -> None:
        """Also for streams that were made since they got ready."""
        await asyncio.gather(*(server.staging.link() for server in self))

    async def stop(self, *, keep: bool) -> None:
        """Ends all."""
        await asyncio.gather(*(server.stop(keep=keep) for server in self))


class BusServer:
    """One nats-server; keeps its port over restarts, so that clients find it again."""

    def __init__(self, program: BusProgram, process: subprocess.Popen[bytes], staging: Staging) -> None:
        self._program = program
        self.staging = staging
        self.child = Child(program.name, process)

    def password(self, user: str) -> str:
        return self._program.passwords[user]

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._program.port}"

    async def ready(self) -> None:
        """Waits until it listens. Raises `ServerTooOldError` or `LocalPlatformError` if it never will."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not self._program.listens():
                    if not self.child.alive:
                        raise self._program.why_it_ended(self.child.process.returncode)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise LocalPlatformError(
                f"nats-server was not ready after {READY_TIMEOUT_S:.0f} s{self._program.log_tail()}"
            ) from None
        await self.staging.link()

    def restart(self) -> None:
        """Starts it again on the same port, after it has ended."""
        self.child = Child(self._program.name, self._program.start())

    async def stop(self, *, keep: bool) -> None:
        """Ends it; everything acknowledged is on disk. When its data goes too it need not close it, for 100 ms."""
        await self.child.stop(STOP_GRACE_S, signal.SIGTERM if keep else signal.SIGKILL)
        self.staging.close()
