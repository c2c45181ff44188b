"""Health of a service, and a tiny HTTP endpoint for services that have no HTTP server of their own.

/healthz: the event loop turns. /readyz: every check is content, else 503 with the reasons. /metrics: Prometheus text.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

Check = Callable[[], str | None]
"""None = ready; else the reason why not."""

MAX_REQUEST_BYTES = 8192
REQUEST_S = 5.0


class Health:
    """The named conditions under which a service can do its work."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}

    def check(self, name: str, check: Check) -> None:
        """Add a condition; it is asked at every probe and must be quick."""
        self._checks[name] = check

    def reasons(self) -> dict[str, str]:
        """Why the service is not ready; empty = ready."""
        return {name: reason for name, check in self._checks.items() if (reason := check()) is not None}

    @property
    def ready(self) -> bool:
        return not self.reasons()


def answer(path: str, health: Health, metrics: Callable[[], bytes]) -> tuple[int, str, bytes]:
    """Status, content type and body for one path; also for services that route these paths themselves."""
    match path:
        case "/healthz":
            return 200, "text/plain", b"ok\n"
        case "/readyz":
            reasons = health.reasons()
            return (503 if reasons else 200), "application/json", json.dumps(reasons).encode()
        case "/metrics":
            return 200, "text/plain; version=0.0.4; charset=utf-8", metrics()
        case _:
            return 404, "text/plain", b"not found\n"


@asynccontextmanager
async def serve_health(
    health: Health, metrics: Callable[[], bytes], *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[int]:
    """Listen until the block ends; gives the port."""

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_S):
                request = await reader.readuntil(b"\r\n\r\n")
                words = request.split(b" ", 2)
                path = words[1].split(b"?")[0].decode("ascii", "replace") if len(words) == 3 else ""
                writer.write(_response(*answer(path, health, metrics)))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a probe that hung up or talks something else
        finally:
            writer.close()

    server = await asyncio.start_server(on_connection, host, port, limit=MAX_REQUEST_BYTES)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def _response(status: int, content_type: str, body: bytes) -> bytes:
    reason = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}[status]
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body
