"""The HTTP server: a socket of our own, uvicorn on it (with `http_protocol`), and a drain that ends."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn

from squall.errors import PortInUseError
from squall_gateway.edge import App
from squall_gateway.http_protocol import Protocol
from squall_gateway.socket_protocol import SocketProtocol
from squall_gateway.web.upstream import MAX_MESSAGE_BYTES

BACKLOG = 2048
KEEP_ALIVE_S = 90.0
"""Longer than clients keep idle connections (60 s): who reuses a connection must be the one that closes it."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `PortInUseError` naming what is in the way."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By name: of sockets without a protocol asyncio does not know that it should send at once what is short, and each
    # answer whose head and body are written apart would wait 40 ms for the acknowledgement of its head.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A restarted gateway takes its port while connections of the last one are still closing.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise PortInUseError(f"cannot listen on {host}:{port}: {error.strerror}", host=host, port=port) from error
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """How clients on this machine reach it."""
    host, port = listener.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


class Server(uvicorn.Server):
    """uvicorn without its signal handlers (the process, or the embedded platform, owns signals) and without its clock,
    which ticks ten times a second for a header that we do not send: a third of an idle gateway's CPU."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stop = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        """Wait until `stop`."""
        await self._stop.wait()

    def stop(self) -> None:
        """No new connections; what is open has its grace period."""
        self.should_exit = True
        self._stop.set()


@asynccontextmanager
async def serving(app: App, listener: socket.socket, drain_s: float) -> AsyncIterator[None]:
    """Serve while the block runs. After it: no new connections, open requests have `drain_s` to end."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws=SocketProtocol,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        proxy_headers=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(KEEP_ALIVE_S),
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
    # Its lines ("Started server process") are not events, and failures are logged at the edge with their request id.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    server = Server(config)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve(sockets=[listener]))
        try:
            # The socket listens already: who connects before the server looks at it waits a moment, no longer.
            yield
        finally:
            server.stop()
