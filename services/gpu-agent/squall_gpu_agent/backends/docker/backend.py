"""The Docker backend: containers of an engine on this machine, asked for over its socket.

Owns one data folder, the containers that carry its label, and the ends of their networks. Every limit of a sandbox is
asked of the engine; what an engine does not give (a bounded place for payload files, a network that is closed to the
control plane) is this backend's, as root. Starts take the engine's time, so that one is begun ahead for each of the
functions that were started last; there are no templates.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from squall.spec import ImageSpec
from squall_gpu_agent.backend import (
    Capabilities,
    ContainerRequest,
    Inside,
    Isolation,
    Log,
    NoTemplate,
    OnLog,
    OnText,
    Root,
    StartFailed,
    StartFailureKind,
)
from squall_gpu_agent.backends import launch, sdk_files
from squall_gpu_agent.backends.docker import image, inside, volumes
from squall_gpu_agent.backends.docker.container import Begun, DockerContainer, Door, Placed, clear
from squall_gpu_agent.backends.docker.engine import Engine
from squall_gpu_agent.backends.docker.wanted import AGENT_LABEL, DockerWanted, Limits
from squall_gpu_agent.backends.kept_ahead import KeptAhead
from squall_gpu_agent.backends.phases import Timeline
from squall_gpu_agent.backends.process_starter import Ends
from squall_gpu_agent.backends.process_template import ProcessTemplate
from squall_gpu_agent.backends.runner_container import RunnerContainer
from squall_gpu_agent.backends.sandbox import kernel, network
from squall_gpu_agent.backends.sandbox.network import Networks
from squall_gpu_agent.backends.sandbox.settings import (
    FIRST_ID,
    IDS_EACH,
    LAST_ID,
    SHARED_MEMORY_MIB,
    WRITABLE_MIB,
    Roots,
    SandboxSettings,
)
from squall_gpu_agent.backends.sandbox.wanted import SDK
from squall_gpu_agent.backends.sdk_files import SdkFiles
from squall_gpu_agent.backends.starting import StartingBackend, as_start_failure, huge_pages
from squall_gpu_agent.backends.warden_link import SpawnFailed
from squall_gpu_agent.runner_link import RunnerLink
from squall_images.eviction import Freed, Unwanted
from squall_isolation import seccomp
from squall_service.telemetry import log

REQUESTS, COMMANDS = 64, 32
"""Threads that wait for the engine."""
NO_BUCKETS = "the docker backend cannot mount buckets yet; use a node with the sandbox backend"
CLEAR_S = 20.0
MOST_AHEAD = 4
"""Of all functions. Each takes about 25 MiB, which placement does not count: an interpreter and the engine's shim."""
KEPT_IMAGES = 32
"""In the engine, besides those that containers use: so many that were loaded last, over restarts of the agent."""
IMAGE_LABEL = "squall.image"


class _Opened(NamedTuple):
    sdk: SdkFiles
    notes: tuple[str, ...]


class DockerBackend(StartingBackend[DockerWanted, DockerContainer, ProcessTemplate]):
    """See `squall_gpu_agent.backend.Backend`."""

    name = "docker"

    def __init__(self, settings: SandboxSettings, roots: Roots, *, socket: Path) -> None:
        super().__init__(0)
        self._settings = settings
        self._data = settings.data_dir.absolute()
        self._roots = roots
        self._engine = Engine(socket)
        self._tag = hashlib.sha256(str(self._data).encode()).hexdigest()[:12]
        self._opening = asyncio.Lock()
        self._open_parts: _Opened | None = None
        self._loading: dict[str, asyncio.Lock] = {}
        self._networks: Networks | None = None
        # Of our own: what waits for an engine must not keep the agent's other work waiting.
        self._threads = ThreadPoolExecutor(REQUESTS, "squall-engine")
        self._commands = ThreadPoolExecutor(COMMANDS, "squall-command")
        self._removing: set[asyncio.Future[None]] = set()
        self._ids: dict[str, int] = {}
        self._ahead: KeptAhead[Begun] = KeptAhead(MOST_AHEAD)

    # --- Backend ---

    async def probe(self) -> Capabilities:
        """See `Backend.probe`. Raises `StartFailed` when there is no engine to be used."""
        with as_start_failure():
            opened = await self._opened()
            versions = await self._roots.python_versions()
        return Capabilities(
            backend=self.name,
            isolation=Isolation.SANDBOX,
            python_versions=versions,
            mount_namespaces=True,
            huge_pages=await asyncio.to_thread(huge_pages),
            no_buckets=NO_BUCKETS,
            no_disks=f"what an engine's containers write is kept in memory, at most {WRITABLE_MIB} MiB a folder",
            notes=opened.notes,
        )

    async def ensure_root(self, image: ImageSpec, on_log: OnText) -> Root:
        """See `Backend.ensure_root`."""
        with as_start_failure():
            return await self._roots.ensure_root(image, on_log)

    def images(self) -> tuple[str, ...]:
        """See `Backend.images`."""
        return self._roots.here()

    async def sweep_images(self, now: float) -> None:
        """See `Backend.sweep_images`."""
        freed = await self._roots.sweep(now)
        if freed.layers:
            log.info("layers_removed", images=len(freed.images), layers=len(freed.layers), bytes=freed.bytes)

    async def prune_images(self, unwanted: Unwanted, now: float, *, dry_run: bool) -> Freed:
        """See `Backend.prune_images`."""
        return await self._roots.prune(unwanted, now, dry_run=dry_run)

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._ahead.close()
        await self._kill_containers()
        await asyncio.gather(*self._removing)
        await asyncio.to_thread(self._close)
        self._roots.close()

    # --- parts ---

    async def _opened(self) -> _Opened:
        async with self._opening:
            if self._open_parts is None:
                self._open_parts = await asyncio.to_thread(self._open)
            return self._open_parts

    def _open(self) -> _Opened:
        if os.geteuid() != 0:
            raise OSError(0, "the docker backend needs an agent that runs as root, beside its engine")
        if not seccomp.supported(kernel.MACHINE):
            raise OSError(0, f"the docker backend has no list of system calls for {kernel.MACHINE}")
        info = self._engine.info()
        lacks = [name for name in ("MemoryLimit", "PidsLimit", "CPUShares") if not info.get(name)]
        if lacks:
            raise OSError(0, f"the container engine cannot limit containers ({', '.join(lacks)})")
        if others := [word for word in ("rootless", "userns") if any(word in o for o in info["SecurityOptions"] or ())]:
            raise OSError(0, f"the docker backend does not work with an engine that maps users ({others[0]})")
        self._clear()
        shutil.rmtree(self._data / "images", ignore_errors=True)  # half packed, by an agent that was killed
        for folder in ("containers", "images"):
            (self._data / folder).mkdir(parents=True, exist_ok=True)
            (self._data / folder).chmod(0o700)  # whoever reaches a door is given a container's secrets
        version = f"engine {info.get('ServerVersion')}, {info.get('DefaultRuntime', 'runc')}"
        swap = () if info.get("SwapLimit") else ("the container engine cannot keep containers from swapping",)
        return _Opened(sdk_files.install(self._data), (version, *swap, *self._open_network()))

    def _open_network(self) -> tuple[str, ...]:
        if self._settings.network is None:
            return ("no network in containers: the operator has turned it off",)
        if missing := network.missing():
            return (missing,)
        networks = Networks(self._tag[:6], self._settings.network)
        try:
            networks.open()
        except OSError as error:
            return (f"no network in containers: {error}",)
        self._networks = networks
        return ()

    def _clear(self) -> None:
        """What an agent that was killed has left."""
        label = f"{AGENT_LABEL}={self._tag}"
        until = time.monotonic() + CLEAR_S
        while (found := self._engine.containers(label)) and time.monotonic() < until:
            for container in found:
                self._engine.remove(container)
            time.sleep(0.05)
        for folder in (self._data / "containers").glob("*"):
            clear(folder)

    def _close(self) -> None:
        if self._open_parts is not None:
            self._clear()
            self._open_parts = None
        if self._networks is not None:
            self._networks.close()
        shutil.rmtree(self._data / "images", ignore_errors=True)
        self._engine.close()
        self._threads.shutdown(wait=False)
        self._commands.shutdown(wait=False)

    async def _image(self, root: Root, image_key: str) -> str:
        """The name that the engine knows the image by; loaded into it once."""
        name = f"squall/image:{hashlib.sha256(image_key.encode()).hexdigest()[:24]}"
        async with self._loading.setdefault(name, asyncio.Lock()):
            await asyncio.to_thread(self._load, name, root)
        return name

    def _load(self, name: str, root: Root) -> None:
        if self._engine.has_image(name):
            return
        archive = self._data / "images" / f"{name.rpartition(':')[2]}.tar"
        try:
            image.pack(root.layers, name, {IMAGE_LABEL: "1"}, archive)
            self._engine.load(archive)
            for old in self._engine.images(f"{IMAGE_LABEL}=1")[:-KEPT_IMAGES]:
                self._engine.remove_image(old)
        finally:
            archive.unlink(missing_ok=True)

    def _user_of(self, app: str) -> int:
        """Each app has a user of its own, that no distribution gives to anybody."""
        if app not in self._ids:
            place = 1 + len(self._ids)
            if FIRST_ID + place * IDS_EACH > LAST_ID:
                raise SpawnFailed("this agent has run more than 4,000 apps since it started; restart it")
            self._ids[app] = FIRST_ID + place * IDS_EACH
        return self._ids[app]

    # --- StartingBackend ---

    def _disks(self, wanted: DockerWanted) -> dict[str, int]:
        limit_mib = min(wanted.request.spec.resources.ephemeral_disk_mib or WRITABLE_MIB, WRITABLE_MIB)
        return dict.fromkeys(("/root", "/tmp", "/var/tmp"), limit_mib)

    async def _wanted(self, request: ContainerRequest, on_log: OnLog) -> DockerWanted:
        if request.buckets:
            raise StartFailed(StartFailureKind.INFRA, NO_BUCKETS)
        sdk = (await self._opened()).sdk

        def on_line(line: str) -> None:
            on_log(Log(container=request.container_id, stream="system", text=line + "\n"))

        root = await self.ensure_root(request.spec.image, on_line)
        wanted = DockerWanted(name=request.container_id, request=request, root=root, sdk=sdk)
        await self._image(root, wanted.image_key)
        return wanted

    async def _template(self, wanted: DockerWanted, on_log: OnLog, timeline: Timeline) -> ProcessTemplate | NoTemplate:
        return NoTemplate(reason="containers of an engine cannot be forked", lasting=True)

    async def _new_container(
        self, wanted: DockerWanted, found: ProcessTemplate | NoTemplate, on_log: OnLog
    ) -> tuple[DockerContainer, RunnerLink]:
        begun = self._ahead.take(wanted.slot_key) if wanted.slots_are_alike else None
        placed = begun.placed if begun is not None else await self._place(wanted)
        link = RunnerLink(wanted.name, placed.folder, placed.folder, on_log)
        container = DockerContainer(wanted.name, link, placed, self._limits(wanted))
        container.begun = begun
        container.overlays = wanted.mounted(placed.folder)
        container.inside = Inside(start=partial(container.enter, wanted))
        return container, link

    async def _place(self, wanted: DockerWanted) -> Placed:
        name = f"squall-{self._tag}-{next(self._numbers)}"
        folder = self._data / "containers" / name
        await asyncio.to_thread(folder.mkdir)
        placed = Placed(self._engine, name, folder, self._threads, self._commands)
        placed.on_removed.append(self._roots.hold(wanted.root.image_id))
        return placed

    def _limits(self, wanted: DockerWanted) -> Limits:
        resources = wanted.request.spec.resources
        return Limits(
            memory_mib=resources.memory_limit_mib or self._settings.memory_mib,
            processes=self._settings.processes,
            open_files=_open_files(self._settings.open_files),
            writable_mib=min(resources.ephemeral_disk_mib or WRITABLE_MIB, WRITABLE_MIB),
            shared_memory_mib=SHARED_MEMORY_MIB,
        )

    async def _begin(self, wanted: DockerWanted, placed: Placed) -> Begun:
        """Have the engine start it, up to its door. Raises `OSError`, `SpawnFailed`; then `placed` is still there."""
        user, limits = self._user_of(wanted.request.app_id), self._limits(wanted)
        overlays = wanted.mounted(placed.folder)
        body = wanted.body(
            image_name=await self._image(wanted.root, wanted.image_key),
            folder=placed.folder,
            user=user,
            limits=limits,
            tag=self._tag,
            argv=_command(wanted.root.python),
        )
        door, run = Door(placed.folder), partial(asyncio.get_running_loop().run_in_executor, self._threads)
        try:
            volumes.check_places(overlays, wanted.root.layers)
            pid = await run(placed.make, body, user, limits.writable_mib, overlays)
            return Begun(placed, pid, await run(door.opened), self._remove)
        finally:
            door.close()

    async def _begin_ahead(self, wanted: DockerWanted) -> Begun:
        placed = await self._place(wanted)
        try:
            return await self._begin(wanted, placed)
        except BaseException:
            self._remove(placed)
            raise

    def _remove(self, placed: Placed) -> None:
        self._removes(asyncio.get_running_loop().run_in_executor(self._threads, placed.remove))

    def _removes(self, removed: asyncio.Future[None]) -> None:
        self._removing.add(removed)
        removed.add_done_callback(self._removing.discard)

    async def _start_fresh(self, wanted: DockerWanted, container: DockerContainer, ends: Ends) -> dict[str, Any]:
        container.how = "fresh"
        environment = {**launch.shared_variables(wanted), **launch.own_variables(wanted)}
        run = partial(asyncio.get_running_loop().run_in_executor, self._threads)
        try:
            begun = container.begun or await self._begin(wanted, container.placed)
            container.begun, container.pid = begun, begun.pid
            await run(self._connect, wanted, container)
            container.watch(await run(begun.pass_on, environment, ends.theirs))
        except BaseException:
            container.pid = 0  # nobody would hear of its end
            if container.begun is not None:
                container.begun.door.close()
            raise
        return launch.setup(wanted, {}, whole_env=False, template=False, forked=False)

    def _connect(self, wanted: DockerWanted, container: DockerContainer) -> None:
        networks, spec = self._networks, wanted.request.spec
        if networks is None or spec.block_network:
            return
        with container.placed.lock:
            if container.placed.gone:  # and nobody looks at `on_removed` any more
                raise SpawnFailed("its start was given up")
            link = networks.connect(container.pid, spec.outbound_cidr_allowlist)
            container.placed.on_removed.append(lambda: networks.disconnect(link))

    async def _fork_into(
        self, wanted: DockerWanted, template: ProcessTemplate, container: DockerContainer, ends: Ends
    ) -> None:
        raise NotImplementedError("there are no templates")

    async def _start_template(self, key: str, wanted: DockerWanted, on_log: OnLog) -> ProcessTemplate:
        raise NotImplementedError("there are no templates")

    async def _limit(self, wanted: DockerWanted, container: DockerContainer) -> None:
        if wanted.slots_are_alike:
            self._ahead.later(wanted.slot_key, lambda: self._begin_ahead(wanted))
        cores = wanted.request.spec.resources.cpu_limit
        if cores is not None:
            await asyncio.to_thread(self._engine.limit_cpu, container.placed.name, cores)

    def _running(self, container: DockerContainer) -> None:
        container.watch_disk()

    def _ended(self, container: RunnerContainer) -> None:
        assert isinstance(container, DockerContainer)
        if container.removed is not None:
            self._removes(container.removed)


def _open_files(wanted: int) -> int:
    """An engine raises no limit above the machine's."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if most == resource.RLIM_INFINITY else min(wanted, most)


def _command(python: Path) -> list[str]:
    """The first process: its program is passed as text, and the runner's command line as its words."""
    runner = launch.command(python, SDK)
    program = f"{Path(inside.__file__).read_text()}\nmain({runner[-2]!r})\n"
    return [*runner[:-2], program, SDK]
