"""The port of a web server that user code has started: bytes of a line go there and back.

The gateway writes the request and reads the answer; here nothing is parsed.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Callable

from squall_runner.load import LoadError
from squall_runner.web.line import Line

LOOK_S = 0.02
READ_BYTES = 1 << 16
HOST = "127.0.0.1"


class Port:
    """One port of this container."""

    def __init__(self, port: int, startup_timeout_s: float) -> None:
        self.port = port
        self._startup_timeout_s = startup_timeout_s

    async def start(self, function: Callable[..., Any]) -> Port:
        """Have the server started; returns when it listens. Raises `LoadError` if it does not."""
        check_free(self.port)
        started = function()
        if asyncio.iscoroutine(started):
            await started
        return await self.until_listening()

    async def until_listening(self) -> Port:
        """Wait for the server. Raises `LoadError` if it does not come."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._startup_timeout_s
        while not await self._listens():
            if loop.time() > deadline:
                raise LoadError(
                    f"nothing listens on port {self.port} after {self._startup_timeout_s:g} s: "
                    "start the server in the background, bind it to 0.0.0.0, or give it a longer startup_timeout"
                )
            await asyncio.sleep(LOOK_S)
        return self

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def serve(self, line: Line) -> None:
        """One connection, until either end closes it."""
        try:
            reader, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return  # the gateway sees that it ends without an answer
        up = asyncio.get_running_loop().create_task(_upwards(line, writer))
        try:
            while data := await reader.read(READ_BYTES):
                line.write(data)
                await line.drain()
        except OSError:
            line.abort()
        finally:
            up.cancel()
            writer.close()


def check_free(port: int) -> None:
    """Raise `LoadError` if something else listens there: its answers would be taken for the server's."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as error:
            raise LoadError(
                f"port {port} is taken: containers without isolation share the ports of their machine; "
                "use max_containers=1, another port, or a node with isolation"
            ) from error


async def _upwards(line: Line, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await line.receive_raw():
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()  # whoever asked is gone: the server shall see that
