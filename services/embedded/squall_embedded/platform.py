"""One platform from start to end: the bus server, what must lie on the bus, the services, the announcement.

Owns the order of things. How the services run is in `tasks` (all in this process) and `processes` (each in its own).
"""

from __future__ import annotations

import asyncio
import functools
import gc
import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from squall.errors import LocalPlatformError
from squall.spec import ImageSpec
from squall_bus import Bus, KeyExists, SubjectTaken, connect
from squall_contracts import roles, subjects, topology
from squall_contracts.builds import BuildImage
from squall_contracts.functions import TOKENS, TokenRecord
from squall_embedded import state
from squall_embedded.bus_server import BusServer, BusServers
from squall_embedded.parent import stop_on_signals, until_parent_is_gone
from squall_embedded.restarts import Restarts
from squall_embedded.settings import REGION, SHARDS, EmbeddedSettings
from squall_embedded.site import WORKSPACE, Form, Parts, Site
from squall_service.clock import Clock, SystemClock
from squall_service.telemetry import log

STARTS_OF_THE_BUS = 12
"""Of a nats-server that keeps ending by itself, in half a minute, before the platform gives up."""


@dataclass(kw_only=True)
class Platform:
    """Built by `__main__` around a bus server that is already starting."""

    settings: EmbeddedSettings
    servers: BusServers
    ports: tuple[int, ...]
    load_form: Callable[[], Form]
    """Imports the services, which takes most of the start: runs in a thread beside the work on the bus."""
    announce: Callable[[state.Announcement], None]
    vanish: Callable[[], NoReturn]
    """Ends this process and everything of it at once: what a temporary platform does when its containers have ended.
    Its one client is gone and its data goes with it; to drain gateways and queues would cost that client 0.3 s."""
    parent: int
    clock: Clock = field(default_factory=SystemClock)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _announced: tuple[Site, Parts] | None = None

    async def run(self) -> None:
        """The whole life. Raises what kept it from starting, or ended it early."""
        stop_on_signals(self._stop.set)
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._stop_without_parent())
            life = tasks.create_task(self._live())
            stopping = tasks.create_task(self._stop.wait())
            await asyncio.wait({life, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not self._announced:
                life.cancel()
            await asyncio.wait({life})
            stopping.cancel()
            watching.cancel()

    async def _stop_without_parent(self) -> None:
        if not self.settings.ephemeral:
            return
        await until_parent_is_gone(self.parent)
        log.info("parent_gone")
        self._stop.set()

    async def _live(self) -> None:
        try:
            await self.servers.ready()
            async with asyncio.TaskGroup() as tasks:
                keeping = [tasks.create_task(self._keep(server)) for server in self.servers]
                layout = topology.build(REGION, SHARDS, self.settings.bus_servers)
                async with connect(self.servers.settings(roles.TOPOLOGY), layout) as bus:
                    await self._serve(bus)
                for task in keeping:
                    task.cancel()
        finally:
            state.remove_if_ours(self.settings.state_file)
            await self.servers.stop(keep=not self.settings.ephemeral)

    async def _serve(self, bus: Bus) -> None:
        form, site = await asyncio.gather(asyncio.to_thread(self.load_form), self._prepare(bus))
        async with form(site, bus, functools.partial(self._on_parts, site)) as end_containers:
            await self._stop.wait()
            log.info("platform_stopping")
            if self.settings.ephemeral:
                await end_containers()
                await self.servers.stop(keep=False)
                self.vanish()

    async def _prepare(self, bus: Bus) -> Site:
        """Streams, buckets and tokens."""
        await bus.ensure_topology()
        await self.servers.stage_in_memory()
        await self._ask_for_default_image(bus)
        user = state.token(self.settings.data, state.WORKSPACE_TOKEN_FILE)
        service = state.token(self.settings.data, state.SERVICE_TOKEN_FILE)
        await self._allow(bus, user, name="local user", scope="workspace")
        await self._allow(bus, service, name="local services", scope="service")
        return Site(
            settings=self.settings,
            bus=self.servers.settings,
            ports=self.ports,
            token=user,
            service_token=service,
            secrets_key=state.token(self.settings.data, state.SECRETS_KEY_FILE),
        )

    async def _ask_for_default_image(self, bus: Bus) -> None:
        """Most first programs name no image: theirs is made on the other core while the gateway gets ready (0.15 s)."""
        spec = ImageSpec(python_version="{}.{}".format(*sys.version_info))
        command = BuildImage(image=spec.id, spec=spec, requested_at=self.clock.now())
        try:
            await bus.publish(subjects.build(bus.topology.region, spec.id), command.encode())
        except SubjectTaken:
            pass  # asked for before the last stop, and not answered yet

    async def _allow(self, bus: Bus, token: str, name: str, scope: str) -> None:
        record = TokenRecord(workspace=WORKSPACE, name=name, scope=scope, created_at=self.clock.now())
        try:
            await bus.kv(TOKENS).create(hashlib.sha256(token.encode()).hexdigest(), record.encode())
        except KeyExists:
            pass  # a platform that starts again over its folder

    def _on_parts(self, site: Site, parts: Parts) -> None:
        if self._announced is None:
            # The modules that are loaded now stay: the collector need not look at them again.
            gc.freeze()
            gc.enable()
        self._announced = (site, parts)
        self._tell()

    def _tell(self) -> None:
        assert self._announced is not None
        site, parts = self._announced
        self.announce(
            state.Announcement(
                url=site.urls[0],
                token=site.token,
                pid=os.getpid(),
                data=str(site.data),
                mode="processes" if self.settings.processes else "tasks",
                started_at=self.clock.now(),
                processes=[*({"name": each.child.name, "pid": each.child.pid} for each in self.servers), *parts],
            )
        )

    async def _keep(self, server: BusServer) -> None:
        """Starts a nats-server again when it ends by itself; every client reconnects to the same port."""
        restarts = Restarts()
        while True:
            started = self.clock.monotonic()
            status = await server.child.ended()
            restarts = restarts.after_end(self.clock.monotonic() - started)
            log.error("bus_ended", server=server.child.name, status=status, again_in_s=restarts.delay_s)
            await self.clock.sleep(restarts.delay_s)
            server.restart()
            if await self._listens_again(server, restarts) and self._announced:
                self._tell()

    async def _listens_again(self, server: BusServer, restarts: Restarts) -> bool:
        """Whether it got ready before it ended once more. Raises the end of its log when it has ended too often."""
        while True:
            try:
                await server.ready()
            except LocalPlatformError as error:
                if restarts.in_a_row >= STARTS_OF_THE_BUS:
                    raise
                log.warning("bus_not_ready", server=server.child.name, reason=error.message)
                if not server.child.alive:
                    return False
                # A store that was not closed is read through first: minutes for a large one.
                continue
            return True
