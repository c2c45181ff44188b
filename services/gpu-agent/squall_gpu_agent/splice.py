"""The splice: a unix socket for containers. Copies bytes to the gateway's API and back, and looks at none of them.

User code has no other way out than this. Who it is says its token, which the gateway checks. A connection that begins
with `WebLine.HELLO` is one that a container offers for a web request: it goes to `web.lines` instead.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from squall_gpu_agent.tasks import Tasks
from squall_gpu_agent.web.halves import Half
from squall_gpu_agent.web.lines import Line, Lines
from squall_runner.frames import WebLine
from squall_service.telemetry import log

CONNECT_S = 5.0
MAX_CONNECTIONS = 1024
MAX_HELLO_BYTES = 256


class Splice:
    """Copies between connections of the socket and connections to the gateway."""

    def __init__(self, gateway_url: str, lines: Lines, tasks: Tasks) -> None:
        self._url = urlsplit(gateway_url)
        self._lines = lines
        self._tasks = tasks
        self.open = 0
        """Connections to the gateway."""

    @asynccontextmanager
    async def listen(self, path: Path) -> AsyncIterator[None]:
        """Accept connections at `path` until the block ends."""
        server = await asyncio.get_running_loop().create_unix_server(lambda: Arrival(self), str(path), backlog=1024)
        os.chmod(path, 0o666)  # containers run as other users; the token is the key
        try:
            yield
        finally:
            server.close()  # the folder of the socket goes with the agent

    def offer(self, hello: bytes, transport: asyncio.Transport) -> None:
        """A container offers a line."""
        line = Line()
        if self._lines.offer(hello, line):
            line.adopt(transport)
        else:
            transport.close()

    def connect(self, arrival: Arrival) -> None:
        """A container wants the API."""
        if self.open >= MAX_CONNECTIONS:
            arrival.close()
        else:
            self._tasks.start(self._connect(arrival), "container's connection")

    async def _connect(self, arrival: Arrival) -> None:
        url, loop = self._url, asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                if url.scheme == "unix":
                    _, up = await loop.create_unix_connection(Half, url.path)
                else:
                    secure = url.scheme == "https"
                    port = url.port or (443 if secure else 80)
                    _, up = await loop.create_connection(Half, url.hostname or "", port, ssl=secure or None)
        except (OSError, TimeoutError) as error:
            log.debug("container_connection_failed", reason=repr(error))
            arrival.close()
            return
        arrival.joined(up)


class Arrival(Half):
    """A connection of a container, until its first bytes have said what it is; then one half of two."""

    def __init__(self, splice: Splice) -> None:
        super().__init__()
        self._splice = splice
        self._early: bytearray | None = bytearray()
        self._counted = False

    def data_received(self, data: bytes) -> None:
        """First words, or bytes for the gateway."""
        if self._early is None:
            super().data_received(data)
            return
        self._early += data
        if self._counted:
            return
        hello = WebLine.HELLO
        if self._early[: len(hello)] == hello[: len(self._early)]:
            self._read_hello()
        else:
            self._to_gateway()

    def _read_hello(self) -> None:
        assert self._early is not None
        line, end, _ = self._early.partition(b"\n")
        if end:
            self._splice.offer(bytes(line[len(WebLine.HELLO) :]), cast("asyncio.Transport", self._transport))
        elif len(self._early) > MAX_HELLO_BYTES:
            self.close()

    def _to_gateway(self) -> None:
        self.hold(True)
        self._splice.connect(self)
        self._counted = True
        self._splice.open += 1

    def joined(self, up: Half) -> None:
        """The gateway is there."""
        early, self._early = bytes(self._early or b""), None
        self.join(up)
        if self._transport is None:
            up.close()
            return
        up.write(early)
        if self._said_all:
            up.finish()
        self.hold(False)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        if self._counted:
            self._counted = False
            self._splice.open -= 1
        super().connection_lost(exc)
