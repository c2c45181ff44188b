"""Each service as a process of its own, started, watched and stopped from here: the distributed form on one machine."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from squall.errors import LocalPlatformError
from squall_bus import Bus
from squall_embedded import addresses, configuring
from squall_embedded.children import Child
from squall_embedded.restarts import Restarts
from squall_embedded.site import EndContainers, Publish, Site
from squall_embedded.spawn import spawn
from squall_service.clock import Clock, SystemClock
from squall_service.telemetry import log

GRACE_S = 60.0
"""Services hand back what they hold; agents wait for running inputs (25 s) and @exit hooks (30 s)."""
PROBE_S = 0.05
PROBE_TIMEOUT_S = 2.0
STARTS_BEFORE_READY = 3
"""A service that ends so often before it was ever ready keeps the platform from starting."""


@asynccontextmanager
async def run_services(site: Site, bus: Bus, publish: Publish) -> AsyncIterator[EndContainers]:
    """Starts all of them at once; in the block all are ready, after it all have drained."""
    clock = SystemClock()
    with addresses.Ports() as ports:
        parts = [Part(program, site, clock) for program in programs(site, ports)]
        changed = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                keeping = [tasks.create_task(part.keep(changed), name=part.program.name) for part in parts]
                async with asyncio.timeout(configuring.READY_TIMEOUT_S):
                    await asyncio.gather(*(part.become_ready() for part in parts))
                publish([part.described for part in parts])
                keeping.append(tasks.create_task(_publish_changes(parts, changed, publish)))

                async def end_containers() -> None:
                    await asyncio.gather(*(part.stop() for part in parts if part.program.service == "gpu-agent"))

                yield end_containers
                # Containers first: what they still answer, and commit at their end, goes through gateways. Then these:
                # they stop taking calls while everything else is still there.
                await end_containers()
                await asyncio.gather(*(part.stop() for part in parts if part.program.url))
                await asyncio.gather(*(part.stop() for part in parts))
                for task in keeping:
                    task.cancel()
        finally:
            for part in parts:
                part.kill()


async def _publish_changes(parts: list[Part], changed: asyncio.Event, publish: Publish) -> None:
    while True:
        await changed.wait()
        changed.clear()
        publish([part.described for part in parts])


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How to start one part."""

    name: str
    """`gateway-0`: unique on this machine."""
    service: str
    module: str
    environment: Mapping[str, str]
    health: str
    """URL that answers 200 when it is ready."""
    url: str = ""
    """Of a gateway."""


class Part:
    """One service process, started again when it ends by itself."""

    def __init__(self, program: Program, site: Site, clock: Clock) -> None:
        self.program = program
        self._site = site
        self._clock = clock
        self._stopping = False
        self.ready = asyncio.Event()
        self.child = self._start()

    @property
    def described(self) -> dict[str, Any]:
        """For the announcement."""
        url = {"url": self.program.url} if self.program.url else {}
        return {"name": self.program.name, "pid": self.child.pid, "health": self.program.health, **url}

    def _start(self) -> Child:
        command = [sys.executable, "-P", "-m", self.program.module]
        log_file = self._site.data / f"{self.program.name}.log"
        process = spawn(command, log=log_file, cwd=self._site.data, env=self.program.environment)
        return Child(self.program.name, process)

    async def become_ready(self) -> None:
        """Waits until its health endpoint is content. It may end a few times before."""
        while not await _answers(self.program.health):  # noqa: ASYNC110 - another process cannot set an event
            await asyncio.sleep(PROBE_S)
        self.ready.set()

    async def keep(self, changed: asyncio.Event) -> None:
        """Starts it again, later and later, as often as it ends. Sets `changed` at each start."""
        restarts = Restarts()
        while True:
            started = self._clock.monotonic()
            status = await self.child.ended()
            if self._stopping:
                return
            restarts = restarts.after_end(self._clock.monotonic() - started)
            if restarts.in_a_row >= STARTS_BEFORE_READY and not self.ready.is_set():
                raise LocalPlatformError(f"{self.program.name} cannot start (status {status}){self._tail()}")
            log.error("service_ended", name=self.program.name, status=status, again_in_s=restarts.delay_s)
            await self._clock.sleep(restarts.delay_s)
            if self._stopping:
                return
            self.child = self._start()
            changed.set()

    async def stop(self) -> None:
        """Lets it drain."""
        self._stopping = True
        status = await self.child.stop(GRACE_S)
        if status:
            log.warning("service_not_drained", name=self.program.name, status=status)

    def kill(self) -> None:
        """Ends it without asking, if it still runs."""
        self._stopping = True
        if self.child.alive:
            self.child.process.kill()
            self.child.process.wait()

    def _tail(self) -> str:
        lines = (self._site.data / f"{self.program.name}.log").read_text(errors="replace").splitlines()[-8:]
        return "; the end of its log:\n" + "\n".join(lines)


def programs(site: Site, ports: addresses.Ports) -> list[Program]:
    """What runs, gateways first."""
    counts = {"gateway": len(site.ports), "gpu-agent": site.settings.agents}
    return [
        _program(service, number, counts.get(service, 1) > 1, site, ports)
        for service in configuring.PACKAGES
        for number in range(counts.get(service, 1))
    ]


def _program(service: str, number: int, one_of_many: bool, site: Site, ports: addresses.Ports) -> Program:
    given = configuring.keywords(service, site, number)
    url = site.urls[number] if service == "gateway" else ""
    health = url
    if service != "gateway":
        port = ports.choose("127.0.0.1", 0)
        health, given = addresses.url("127.0.0.1", port), {**given, "health_port": port}
    return Program(
        name=f"{service}-{number}" if one_of_many else service,
        service=service,
        module=configuring.PACKAGES[service][0],
        environment=configuring.environment(service, given, site, number),
        health=f"{health}/readyz",
        url=url,
    )


async def _answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
            status = await reader.readline()
            writer.close()
    except (OSError, TimeoutError):
        return False
    return b" 200 " in status
