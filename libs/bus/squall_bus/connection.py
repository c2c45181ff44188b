"""connect: from settings to a usable Bus, and back. Owns the task group of everything the bus runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from squall_bus.administration import check_jetstream
from squall_bus.bunches import Bunches
from squall_bus.bus import Bus
from squall_bus.consume import event
from squall_bus.errors import ServerTooOld
from squall_bus.link import Link
from squall_bus.publishing import Publisher
from squall_bus.routes import Routes
from squall_bus.settings import BusSettings
from squall_bus.soon import SoonBuffer
from squall_contracts.topology import MIN_SERVER_VERSION, Topology

FLUSH_AT_CLOSE_S = 2.0


@asynccontextmanager
async def connect(settings: BusSettings, topology: Topology) -> AsyncIterator[Bus]:
    """A connection that stays up until the block ends: it reconnects by itself, for ever.

    Raises BusUnavailable when no server answers within `connect_timeout_s`, ServerTooOld when it is too old.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            link = Link(settings, tasks)
            await link.open()
            try:
                check_version(link)
                await check_jetstream(link)
                async with _parts(link, topology, Bunches(settings, tasks)) as bus:
                    yield bus
            finally:
                await link.close()
    except BaseExceptionGroup as group:
        # The group wraps what the caller's own block raised; the caller wants to catch that by its class.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


@asynccontextmanager
async def _parts(link: Link, topology: Topology, bunches: Bunches) -> AsyncIterator[Bus]:
    routes = Routes(topology)
    publisher, soon = Publisher(link, routes), SoonBuffer(link, routes)
    bus = Bus(link, topology, publisher, soon, bunches)
    try:
        yield bus
        await bus.flush(FLUSH_AT_CLOSE_S)
    finally:
        soon.close()
        publisher.close()
        await bunches.close()


def check_version(link: Link) -> None:
    """An old server answers most calls and ignores what it does not know: refuse it before it does harm."""
    version, minimum = link.server_version, MIN_SERVER_VERSION
    if version >= minimum:
        return
    found, wanted = ".".join(map(str, version)), ".".join(map(str, minimum))
    message = f"nats-server {found} at {link.settings.address} is too old; squall needs {wanted}"
    if not link.settings.dev:
        raise ServerTooOld(message, minimum=wanted, found=found)
    event(logging.ERROR, "bus_server_too_old", found=found, minimum=wanted)
