"""All services as tasks of this process, each on its own bus connection. The default form, which starts fastest."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from squall_autoscaler import service as autoscaler
from squall_builder import service as builder
from squall_bus import Bus, connect
from squall_embedded import configuring
from squall_embedded.site import EndContainers, Publish, Site
from squall_gateway import service as gateway
from squall_gpu_agent import service as agent
from squall_scheduler import service as scheduler
from squall_service import failpoints
from squall_service.run import Running, Service, ServiceContext, start
from squall_service.telemetry import TelemetrySettings, open_telemetry

GRACE_S = 45.0
"""Of each service; what has not drained by then is cancelled. Agents wait for running inputs (25 s) and @exit hooks."""
AGENT = "gpu-agent"
RUNS: Mapping[str, configuring.Run] = {
    "gateway": gateway.run,
    "gpu-agent": agent.run,
    "scheduler": scheduler.run,
    "autoscaler": autoscaler.run,
    "builder": builder.run,
}


@asynccontextmanager
async def run_services(site: Site, bus: Bus, publish: Publish) -> AsyncIterator[EndContainers]:
    """Starts all of them at once and waits until each is ready; the first one that fails ends the block."""
    services = [_service(name, site, bus) for name in configuring.PACKAGES]
    telemetry = open_telemetry("embedded", TelemetrySettings.load())
    failpoints.enable(failpoints.FailPointSettings.load())
    stop = asyncio.get_running_loop().create_future()
    present: dict[str, Running] = {}

    async def keep(service: Service[Any], ready: asyncio.Event) -> None:
        async with start(service, telemetry=telemetry) as running:
            present[service.name] = running
            ready.set()
            await running.ended(stop)

    async def end_containers() -> None:
        if AGENT in present:
            await present[AGENT].stop()

    try:
        async with asyncio.TaskGroup() as tasks:
            readies = {service.name: asyncio.Event() for service in services}
            for service in services:
                tasks.create_task(keep(service, readies[service.name]), name=service.name)
            # The one client of a temporary platform begins with the gateway alone; the others are ready before it needs
            # them, or wait for nothing but the bus, where its call lies.
            needed = ["gateway"] if site.settings.ephemeral else list(readies)
            try:
                async with asyncio.timeout(configuring.READY_TIMEOUT_S):
                    await asyncio.gather(*(readies[name].wait() for name in needed))
                publish([_part(service.name, site) for service in services])
                yield end_containers
                # First: what they still answer, and commit at their end, goes through the gateway.
                await end_containers()
            finally:
                if not stop.done():
                    stop.set_result(None)
    finally:
        await telemetry.close()


def _service(name: str, site: Site, bus: Bus) -> Service[Any]:
    run = RUNS[name]
    settings = configuring.settings_class(name).load(**configuring.keywords(name, site))

    async def main(context: ServiceContext[Any]) -> None:
        async with connect(configuring.bus_settings(name, site), bus.topology) as own:
            await run(context.settings, own, context)

    return Service(name=name, main=main, settings=settings, grace_s=GRACE_S)


def _part(name: str, site: Site) -> dict[str, Any]:
    part: dict[str, Any] = {"name": name, "pid": os.getpid()}
    return {**part, "url": site.urls[0]} if name == "gateway" else part
