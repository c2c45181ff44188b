"""The health endpoint: alive, ready or why not, metrics."""

from __future__ import annotations

import asyncio

from squall_service.health import Health, serve_health


async def get(port: int, path: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return int(answer.split(" ")[1]), answer.partition("\r\n\r\n")[2]


async def test_a_service_is_alive_ready_and_measured() -> None:
    async with serve_health(Health(), lambda: b"m 1\n") as port:
        assert await get(port, "/healthz") == (200, "ok\n")
        assert await get(port, "/readyz") == (200, "{}")
        assert await get(port, "/metrics?x=1") == (200, "m 1\n")
        assert (await get(port, "/other"))[0] == 404


async def test_a_service_that_is_not_ready_says_why() -> None:
    health = Health()
    connected = False
    health.check("bus", lambda: None if connected else "not connected")
    async with serve_health(health, lambda: b"") as port:
        assert await get(port, "/readyz") == (503, '{"bus": "not connected"}')
        connected = True
        assert (await get(port, "/readyz"))[0] == 200


async def test_nonsense_and_silence_do_not_hurt() -> None:
    async with serve_health(Health(), lambda: b"") as port:
        for garbage in (b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"x" * 20_000):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(garbage)
            writer.write_eof()
            await reader.read()
            writer.close()
        assert (await get(port, "/healthz"))[0] == 200
