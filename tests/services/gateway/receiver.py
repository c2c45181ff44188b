"""A receiver of webhooks: a plain HTTP server that answers what it is told to, and keeps what came."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def call(self) -> str:
        return str(self.event["data"]["call"])


@dataclass
class Receiver:
    """Everything that came."""

    port: int = 0
    connections: int = 0
    requests: list[Request] = field(default_factory=list)
    status: Callable[[Request], str] = lambda _: "204 No Content"
    hang: asyncio.Event | None = None
    """While set and not fired, requests to /hang wait for it."""

    def url(self, path: str = "/ends", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def of(self, call: str) -> list[Request]:
        return [each for each in self.requests if each.call == call]

    async def on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            kept = dict(line.split(": ", 1) for line in head[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            if "webhook-id" not in headers:
                return  # somebody who looks for what had the port before
            request = Request(head[0].split()[1], {name.lower(): value for name, value in kept.items()}, body)
            self.requests.append(request)
            if request.path == "/hang" and self.hang is not None:
                await self.hang.wait()
            writer.write(f"HTTP/1.1 {self.status(request)}\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def a_receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.on_connection, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    async with server:
        yield receiver
