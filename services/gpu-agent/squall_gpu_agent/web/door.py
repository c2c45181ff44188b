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

from squall_gpu_agent.pools import Pools
from squall_gpu_agent.settings import AgentSettings
from squall_gpu_agent.tasks import Tasks
from squall_gpu_agent.web.halves import Half
from squall_gpu_agent.web.lines import Line, Lines
from squall_gpu_agent.web.passages import KeptPassage, Loan, Passage
from squall_runner.frames import BadFrame, Frame, Web, encode, first

ASK_S = 10.0
"""How long a connection may take to say what it wants."""
IDLE_S = 600.0
"""The same between two requests; gateways close it far earlier."""
MAX_WHOLE_BYTES = 1 << 20
"""Of a request that comes at once: twice the largest body and head."""
LINE_S = 5.0
"""How long a container with a free slot may take to offer a line: its event loop stands still, or it is dying."""
WRONG_KEY = "the key is wrong"


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

    def lend(self, meta: dict[str, Any]) -> Loan | str:
        """A slot, or why there is none."""
        if not hmac.compare_digest(str(meta.get("key", "")).encode(), self.key.encode()):
            return WRONG_KEY
        pool = self._pools.get(str(meta.get("pool", "")))
        container = pool.lend(str(meta.get("container", ""))) if pool is not None else None
        if pool is None or container is None:
            return "no free slot"
        return Loan(pool, container, float(meta.get("timeout_s") or 0.0), self._settings.stop_grace_s)

    def serve(self, caller: Caller, ask: Frame) -> None:
        """Answer a question for a slot."""
        loan = self.lend(ask.meta)
        if isinstance(loan, str):
            caller.refuse(loan, stranger=loan == WRONG_KEY)
            return
        line = self._lines.take_now(loan.container.id)
        if line is not None:
            self._begin(caller, line, loan, ask)
        else:
            self._tasks.start(self._await_line(caller, loan, ask), "web request")

    async def _await_line(self, caller: Caller, loan: Loan, ask: Frame) -> None:
        passed_on = False
        try:
            async with asyncio.timeout(LINE_S):
                line = await self._lines.take(loan.container.id)
            if line.open:
                self._begin(caller, line, loan, ask)
                passed_on = True
        except (TimeoutError, asyncio.CancelledError):
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # a coroutine runs in a task
                raise
        finally:
            if not passed_on:
                caller.refuse("the container takes no connection")
                loan.give_back()

    def _begin(self, caller: Caller, line: Line, loan: Loan, ask: Frame) -> None:
        if caller.whole:
            KeptPassage(caller, line, loan, self._lines, soon=ask.meta.get("soon") is True)
        else:
            Passage(caller, line, loan)
            caller.write(encode(Web.GRANTED, {"container": loan.container.id}))
        caller.pass_on(line)


class Caller(Half):
    """One connection of a gateway, for one request."""

    def __init__(self, door: Door, *, ask_within_s: float = ASK_S) -> None:
        super().__init__()
        self._door = door
        self._early: bytearray | None = bytearray()
        """What came before it was joined."""
        self._ask: Frame | None = None
        self._size = 0
        self.whole = False
        """All of the request comes at once, and its connection is used again."""
        self._deadline = asyncio.get_running_loop().call_later(ask_within_s, self._too_late)

    def data_received(self, data: bytes) -> None:
        """The question, and what follows."""
        if self._early is not None:
            self._early += data
            self._read()
        elif self.whole:
            self.close()  # more than was announced
        else:
            super().data_received(data)

    def _read(self) -> None:
        assert self._early is not None
        if self._ask is None:
            self._read_ask(self._early)
        elif self.whole:
            self._serve_whole(self._early)

    def _read_ask(self, early: bytearray) -> None:
        try:
            found = first(early)
        except BadFrame as error:
            self.refuse(str(error))
            return
        if found is None:
            return
        self._ask, size = found
        del early[:size]
        announced = self._ask.meta.get("size")
        if self._ask.kind != Web.ASK:
            self.refuse("the first frame is no ASK")
        elif isinstance(announced, int):
            self.whole, self._size = True, announced
            self._serve_whole(early)
        else:
            self._deadline.cancel()
            self.hold(True)
            self._door.serve(self, self._ask)

    def _serve_whole(self, early: bytearray) -> None:
        assert self._ask is not None
        if len(early) > self._size or self._size > MAX_WHOLE_BYTES:
            self.refuse("the request has more bytes than were announced, or than may come at once")
        elif len(early) == self._size:
            self._deadline.cancel()
            self._door.serve(self, self._ask)

    def _too_late(self) -> None:
        self.close()

    def pass_on(self, line: Line) -> None:
        """It has a slot: join it with its line."""
        early, self._early = bytes(self._early or b""), None
        self.join(line)
        if self._transport is None:  # it left while the line was waited for
            line.finish()
            return
        line.write(early)
        if not self.whole:
            self.hold(False)

    def again(self) -> None:
        """Its answer is complete. A new object for the next request: nothing of this one is left in it."""
        transport, self._transport = self._transport, None
        if transport is None or transport.is_closing():
            return
        following = Caller(self._door, ask_within_s=IDLE_S)
        following.connection_made(transport)
        transport.set_protocol(following)
        following.hold(False)

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
