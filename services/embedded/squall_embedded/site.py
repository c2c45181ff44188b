"""What every form of running the services must know about the platform that they belong to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squall_bus import Bus, BusSettings
from squall_embedded import addresses
from squall_embedded.settings import EmbeddedSettings

WORKSPACE = "main"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One platform on one machine."""

    settings: EmbeddedSettings
    bus: Callable[[str, str], BusSettings]
    """The bus connection of a role; the second argument is the node of an agent, else empty."""
    ports: tuple[int, ...]
    """Of the gateways; the first one is announced."""
    token: str
    """The local user's."""
    service_token: str
    """The agents'."""
    secrets_key: str
    """With which gateways encrypt secrets, and agents decrypt them."""

    @property
    def data(self) -> Path:
        return self.settings.data

    @property
    def blobs(self) -> Path:
        """Payloads and code, written by the gateway, read by agents without HTTP."""
        return self.data / "blobs"

    @property
    def images(self) -> Path:
        """Environments, made by the builder, used by agents."""
        return self.data / "images"

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the gateways answer."""
        return tuple(addresses.url(self.settings.host, port) for port in self.ports)


Parts = list[dict[str, Any]]
"""name, pid and, for gateways, url of each part."""
Publish = Callable[[Parts], None]
"""All parts are ready; called again when one of them was started anew."""
EndContainers = Callable[[], Awaitable[None]]
"""Drains the agents alone: nothing of the user's runs afterwards."""
Form = Callable[[Site, Bus, Publish], AbstractAsyncContextManager[EndContainers]]
"""A way of running the services: all are ready in the block, and drained after it."""
