"""The way out of builds: what it refuses, and how much of the builder it takes."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from pathlib import Path

import pytest

from squall_builder.engine import _rules
from squall_builder.settings import BuilderSettings
from squall_images import egress
from squall_images.egress import EgressRules


@pytest.mark.parametrize("address", ["198.51.100.7", "198.51.100.8", "198.51.100.9", "2001:db8::9"])
def test_builds_reach_neither_the_bus_nor_the_gateway_however_their_addresses_are_written(
    tmp_path: Path, address: str
) -> None:
    settings = BuilderSettings(images_dir=tmp_path, gateway_url="https://198.51.100.7/prefix")
    rules = _rules(settings, "nats://user:word@198.51.100.8, 198.51.100.9:4222,tls://[2001:db8::9]")
    assert "denied" in (rules.refusal(ipaddress.ip_address(address)) or "")


async def test_a_build_cannot_take_all_of_the_builders_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "MAX_CONNECTIONS", 2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with egress.serving(listener.dup(), EgressRules()), asyncio.timeout(20):
            pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            assert await pairs[2][0].read() == b"", "the one too many is closed at once"
            pairs[0][1].write(b"GET http://127.0.0.1/ HTTP/1.1\r\n\r\n")
            assert b"403 Forbidden" in await pairs[0][0].read()
            for _, writer in pairs:
                writer.close()
