"""Wiring of the agent: builds everything once, starts the loops, drains."""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from squall.errors import BackendUnavailableError
from squall_bus import Bus, connect
from squall_contracts import roles, topology
from squall_gpu_agent.agent import Agent
from squall_gpu_agent.backend import Backend, StartFailed
from squall_gpu_agent.backends.both import BothBackend
from squall_gpu_agent.manifests import Manifests
from squall_gpu_agent.settings import AgentSettings, networks
from squall_images.store import ManifestOf
from squall_isolation import machine
from squall_service.failpoints import FailPointSettings
from squall_service.health import serve_health
from squall_service.run import ServiceContext
from squall_service.settings import BusConnection
from squall_service.telemetry import log

if TYPE_CHECKING:
    from squall_gpu_agent.backends.sandbox.settings import Roots, SandboxSettings

GRACE_S = 75.0
"""Longer than the longest default drain: 25 s for inputs, 30 s for @exit hooks."""


async def serve(context: ServiceContext[AgentSettings]) -> None:
    """The agent as a process of its own."""
    connection, settings = BusConnection.load(), context.settings
    layout = topology.build(connection.region, connection.shards, connection.replicas)
    health = serve_health(
        context.health, context.telemetry.exposition, host=settings.health_host, port=settings.health_port
    )
    async with connect(connection.bus_settings(roles.AGENT, settings.node_name()), layout) as bus, health:
        # What is loaded now stays, and a call leaves few cycles: collecting as often as by default costs 10 % of it.
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        await run(settings, bus, context)


async def run(settings: AgentSettings, bus: Bus, context: ServiceContext[AgentSettings]) -> None:
    """Work until the context stops; also in a process shared with other services."""
    await run_with(settings, bus, context, await open_backend(settings, Manifests(bus, context.clock).of))


async def open_backend(settings: AgentSettings, manifest_of: ManifestOf | None = None) -> Backend:
    """The one that the operator chose. Raises `BackendUnavailableError` if it does not work here."""
    if settings.backend == "process":
        return open_process_backend(settings)
    if settings.backend == "both":
        return open_both_backend(settings, manifest_of)
    openers = {"gvisor": open_gvisor_backend, "docker": open_docker_backend}
    backend = openers.get(settings.backend, open_sandbox_backend)(settings, manifest_of)
    try:
        await backend.probe()
    except StartFailed as failed:
        await backend.close()
        if settings.backend == "auto":
            log.warning("sandbox_not_possible", reason=failed.message)
            return open_process_backend(settings, f"sandboxes cannot be made here: {failed.message}")
        raise BackendUnavailableError(
            f"the backend {settings.backend!r} does not work on this machine: {failed.message}"
        ) from failed
    return backend


def open_process_backend(settings: AgentSettings, note: str = "") -> Backend:
    """The backend that every machine has."""
    from squall_gpu_agent.backends.process import ProcessBackend, ProcessSettings

    data = Path(settings.data)
    images = Path(settings.images_dir) if settings.images_dir else None
    return ProcessBackend(ProcessSettings(data_dir=data / "process", images_dir=images, note=note))


def open_sandbox_backend(settings: AgentSettings, manifest_of: ManifestOf | None = None) -> Backend:
    """For Linux machines whose agent is root."""
    from squall_gpu_agent.backends.sandbox.backend import SandboxBackend

    return SandboxBackend(_sandbox_settings(settings, "sandbox"), _layers(settings, manifest_of))


def open_both_backend(settings: AgentSettings, manifest_of: ManifestOf | None = None) -> Backend:
    """Processes, and sandboxes beside them where the machine has what they need."""
    if why := machine.lacking():
        return open_process_backend(settings, f"sandboxes cannot be had here: {why}")
    return BothBackend(open_process_backend(settings), lambda: open_sandbox_backend(settings, manifest_of))


def open_gvisor_backend(settings: AgentSettings, manifest_of: ManifestOf | None = None) -> Backend:
    """For machines that have gVisor besides."""
    from squall_gpu_agent.backends.gvisor.backend import GvisorBackend

    own = _sandbox_settings(settings, "gvisor")
    return GvisorBackend(
        own,
        _layers(settings, manifest_of),
        runsc=settings.runsc,
        platform=settings.gvisor_platform,
        snapshots_mib=settings.gvisor_snapshots_mib,
    )


def open_docker_backend(settings: AgentSettings, manifest_of: ManifestOf | None = None) -> Backend:
    """For machines with a container engine."""
    from squall_gpu_agent.backends.docker.backend import DockerBackend

    own = _sandbox_settings(settings, "docker")
    return DockerBackend(own, _layers(settings, manifest_of), socket=Path(settings.docker_socket))


def _sandbox_settings(settings: AgentSettings, folder: str) -> SandboxSettings:
    from squall_gpu_agent.backends.sandbox.network import NetworkRules
    from squall_gpu_agent.backends.sandbox.settings import SandboxSettings

    rules = NetworkRules(
        pool=settings.sandbox_pool,
        allowed=networks(settings.sandbox_allowed),
        refused=networks(settings.sandbox_refused),
    )
    return SandboxSettings(
        data_dir=Path(settings.data) / folder,
        memory_mib=settings.memory(),
        processes=settings.sandbox_processes,
        network=rules if settings.sandbox_network else None,
        shared=_shared_folder(),
        cdi_dirs=settings.cdi_dirs,
    )


def _layers(settings: AgentSettings, manifest_of: ManifestOf | None) -> Roots:
    from squall_gpu_agent.backends.sandbox.roots import LayerRoots, RootSettings

    images = Path(settings.images_dir) if settings.images_dir else Path(settings.data) / "images"
    own = RootSettings(registry=settings.registry, registry_auth=settings.registry_auth, keep_gib=settings.keep_gib)
    return LayerRoots(images, own, manifest_of=manifest_of)


def _shared_folder() -> str:
    folder = FailPointSettings.load().shared_folder
    if folder:
        log.error("sandboxes_share_a_folder", folder=folder, reason="SQUALL_TESTING_SHARED_FOLDER is set")
    return folder


async def run_with(settings: AgentSettings, bus: Bus, context: ServiceContext[AgentSettings], backend: Backend) -> None:
    """`run` with a given backend, which is closed at the end."""
    await bus.await_topology()
    try:
        async with _socket_folder() as folder, asyncio.TaskGroup() as group:
            agent = await Agent.build(settings, bus, context, backend=backend, group=group, sockets=folder)
            async with agent.serve(group):
                context.health.check("bus", lambda: None if bus.connected else "the bus is not connected")
                context.ready()
                await context.stopping.wait()
    finally:
        await backend.close()


@asynccontextmanager
async def _socket_folder() -> AsyncIterator[Path]:
    """Short, because the path of a unix socket may have 107 characters, and data folders are often longer."""
    folder = await asyncio.to_thread(_make_folder)
    try:
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _make_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="squall-"))
    folder.chmod(0o755)  # containers run as other users and must reach the socket in it
    return folder
