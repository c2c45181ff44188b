"""The API socket of containers: a unix socket that passes bytes to the gateway and back, and looks at none of them.

User code has no other way out than this. Who it is says its token, which the gateway checks.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from squall_service.telemetry import log

CHUNK_BYTES = 1 << 16
CONNECT_S = 5.0
MAX_CONNECTIONS = 1024


class Splice:
    """Copies between connections of the socket and connections to the gateway."""

    def __init__(self, gateway_url: str) -> None:
        self._url = urlsplit(gateway_url)
        self._open = 0

    @asynccontextmanager
    async def listen(self, path: Path) -> AsyncIterator[None]:
        """Accept connections at `path` until the block ends."""
        server = await asyncio.start_unix_server(self._on_connection, str(path))
        os.chmod(path, 0o666)  # containers run as other users; the token is the key
        try:
            yield
        finally:
            server.close()  # the folder of the socket goes with the agent

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open > MAX_CONNECTIONS:
                return
            async with asyncio.timeout(CONNECT_S):
                up_reader, up_writer = await self._connect()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_copy(reader, up_writer))
                    group.create_task(_copy(up_reader, writer))
            finally:
                up_writer.close()
        except (OSError, TimeoutError, ExceptionGroup) as error:
            log.debug("container_connection_failed", reason=repr(error))
        finally:
            self._open -= 1
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._url.scheme == "unix":
            return await asyncio.open_unix_connection(self._url.path)
        secure = self._url.scheme == "https"
        port = self._url.port or (443 if secure else 80)
        return await asyncio.open_connection(self._url.hostname, port, ssl=secure or None)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the end of one direction; the other may go on."""
    try:
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.close()
