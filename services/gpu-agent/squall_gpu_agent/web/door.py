"""The door: where gateways bring web requests. Grants a slot or says busy, then joins two connections.

Owns the right to a slot and its return; the pool owns the slots. Does not look into requests.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from squall_gpu_agent.containers import PooledContainer
from squall_gpu_agent.pool import Pool
from squall_gpu_agent.pools import Pools
from squall_gpu_agent.settings import AgentSettings
from squall_gpu_agent.tasks import Tasks
from squall_gpu_agent.web.halves import Half
from squall_gpu_agent.web.lines import Line, Lines
from squall_runner.frames import BadFrame, Frame, Web, encode, first
from squall_service.telemetry import log

ASK_S = 10.0
"""How long a connection may take to say what it wants."""
LINE_S = 5.0
"""How long a container with a free slot may take to offer a line: its event loop stands still, or it is dying."""
WRONG_KEY = "the key is wrong"
TIMEOUT_SLACK_S = 1.0
"""The gateway ends a request that takes too long, and says so; this is for one that does not."""


class Door:
    """Takes web requests from gateways."""

    def __init__(self, settings: AgentSettings, pools: Pools, lines: Lines, tasks: Tasks) -> None:
        self._settings = settings
        self._pools = pools
        self._lines = lines
        self._tasks = tasks
        self.key = secrets.token_urlsafe(24)
        """Told to gateways over the bus."""
        self.address = ""
        """Where it is, once it is open."""

    @asynccontextmanager
    async def listen(self, folder: Path) -> AsyncIterator[None]:
        """Take connections until the block ends: at a socket in `folder`, or at the port that the settings name."""
        loop = asyncio.get_running_loop()
        settings = self._settings
        server: asyncio.Server
        if settings.web_host:
            server = await loop.create_server(lambda: Caller(self), settings.web_host, settings.web_port)
            port = server.sockets[0].getsockname()[1]
            self.address = f"tcp://{settings.web_advertise or socket.gethostname()}:{port}"
        else:
            path = folder / "web.sock"
            server = await loop.create_unix_server(lambda: Caller(self), str(path))
            os.chmod(path, 0o666)  # a gateway may run as another user; the key decides
            self.address = f"unix:{path}"
        try:
            yield
        finally:
            self.address = ""
            server.close()

    def lend(self, meta: dict[str, Any]) -> tuple[Pool, PooledContainer] | str:
        """A slot, or why there is none."""
        if not hmac.compare_digest(str(meta.get("key", "")).encode(), self.key.encode()):
            return WRONG_KEY
        pool = self._pools.get(str(meta.get("pool", "")))
        container = pool.lend() if pool is not None else None
        if pool is None or container is None:
            return "no free slot"
        return pool, container

    def serve(self, caller: Caller, ask: Frame) -> None:
        """Answer a question for a slot."""
        lent = self.lend(ask.meta)
        if isinstance(lent, str):
            caller.refuse(lent, stranger=lent == WRONG_KEY)
            return
        self._tasks.start(self._pass_on(caller, ask, *lent), "web request")

    async def _pass_on(self, caller: Caller, ask: Frame, pool: Pool, container: PooledContainer) -> None:
        line: Line | None = None
        try:
            try:
                async with asyncio.timeout(LINE_S):
                    line = await self._lines.take(container.id)
            except (TimeoutError, asyncio.CancelledError):
                caller.refuse("the container takes no connection")
                if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # a coroutine runs in a task
                    raise
                return
            caller.grant(line, container.id)
            await self._until_ended(caller, line, container, float(ask.meta.get("timeout_s") or 0.0))
        finally:
            if line is not None:
                line.close()
            caller.close()
            pool.returned(container)

    async def _until_ended(self, caller: Caller, line: Line, container: PooledContainer, timeout_s: float) -> None:
        """Until the container has ended the request; one that ignores its timeout loses its container."""
        limit = timeout_s + TIMEOUT_SLACK_S if timeout_s else None
        if not (await asyncio.wait([line.closed], timeout=limit))[1]:
            return
        caller.close()
        line.finish()
        if (await asyncio.wait([line.closed], timeout=self._settings.stop_grace_s))[1]:
            log.warning("web_request_timed_out", container=container.id, timeout_s=timeout_s)
            container.container.kill(f"killed: a web request took longer than its timeout of {timeout_s:g} s")
            await line.closed


class Caller(Half):
    """One connection of a gateway."""

    def __init__(self, door: Door) -> None:
        super().__init__()
        self._door = door
        self._early: bytearray | None = bytearray()
        """What came before it was joined."""
        self._asked = False
        self._deadline = asyncio.get_running_loop().call_later(ASK_S, self._too_late)

    def data_received(self, data: bytes) -> None:
        """The question, and what follows."""
        if self._early is None:
            super().data_received(data)
            return
        self._early += data
        if not self._asked:
            self._read_ask()

    def _read_ask(self) -> None:
        assert self._early is not None
        try:
            found = first(self._early)
        except BadFrame as error:
            self.refuse(str(error))
            return
        if found is None:
            return
        ask, size = found
        del self._early[:size]
        self._asked = True
        self._deadline.cancel()
        self.hold(True)
        if ask.kind != Web.ASK:
            self.refuse("the first frame is no ASK")
        else:
            self._door.serve(self, ask)

    def _too_late(self) -> None:
        self.close()

    def grant(self, line: Line, container: str) -> None:
        """It has a slot: join it with its line."""
        early, self._early = bytes(self._early or b""), None
        self.write(encode(Web.GRANTED, {"container": container}))
        self.join(line)
        if self._transport is None:  # it left while the line was waited for
            line.finish()
            return
        line.write(early)
        self.hold(False)

    def refuse(self, reason: str, *, stranger: bool = False) -> None:
        """It has none; or it is for an agent that was here before."""
        self.write(encode(Web.BUSY, {"reason": reason, "stranger": stranger}))
        self.close()

    def eof_received(self) -> bool:
        """A gateway closes both directions at once."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The gateway is gone: the app is told so, and keeps its slot until it has ended."""
        self._deadline.cancel()
        self._transport = None
        if self._other is not None:
            self._other.hold(False)  # what it says now is thrown away
            self._other.finish()
