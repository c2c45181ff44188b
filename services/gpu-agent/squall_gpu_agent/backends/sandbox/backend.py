"""The sandbox backend: containers in namespaces of their own, over the layers of their image.

Owns one data folder, one group of control groups, and everything below its launcher. Cold starts: a fork of the
function's template into a slot that was made ahead, where that is safe (policy/templates.py), else a fresh interpreter.
What isolates is in launcher.py, first.py, filesystem.py and squall_isolation; docs/explanation/isolation.md says how.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from squall.spec import DISK_IN_MEMORY_MIB, FunctionSpec, ImageSpec
from squall_gpu_agent import cdi
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
from squall_gpu_agent.backends import launch, phases, sdk_files
from squall_gpu_agent.backends.process_starter import Ends
from squall_gpu_agent.backends.runner_container import RunnerContainer
from squall_gpu_agent.backends.sandbox import disks, first, kernel, network
from squall_gpu_agent.backends.sandbox.container import SandboxContainer
from squall_gpu_agent.backends.sandbox.disks import Disk
from squall_gpu_agent.backends.sandbox.network import Link, NetworkRules, Networks
from squall_gpu_agent.backends.sandbox.slots import LauncherLink, Slot
from squall_gpu_agent.backends.sandbox.template import Fork, SandboxTemplate
from squall_gpu_agent.backends.sandbox.wanted import LDCONFIG_OF_HOST, SDK, SandboxWanted
from squall_gpu_agent.backends.sandbox.words import Run, SlotPlan
from squall_gpu_agent.backends.sdk_files import SdkFiles
from squall_gpu_agent.backends.starting import StartingBackend, as_start_failure, huge_pages
from squall_gpu_agent.backends.warden_link import SpawnFailed
from squall_gpu_agent.buckets import joining
from squall_gpu_agent.cdi import Edits
from squall_gpu_agent.pipes import Pipes
from squall_gpu_agent.runner_link import RunnerLink
from squall_gpu_agent.volumes.trees import remove
from squall_images import interpreters
from squall_images.eviction import Freed, Unwanted
from squall_isolation import cgroups, seccomp
from squall_isolation.cgroups import Group, Groups, Limits
from squall_service.telemetry import log

FIRST_ID, LAST_ID, IDS_EACH = 0x70000000, 0x7FFF0000, 1 << 16
"""Host ids above those that distributions give to users and to other container engines."""
PROBE_S = 20.0
PROBE_IDS = FIRST_ID
WRITABLE_MIB, SHARED_MEMORY_MIB = DISK_IN_MEMORY_MIB, 256


class Roots(Protocol):
    """Images as layers on this machine."""

    async def ensure_root(self, image: ImageSpec, on_line: OnText) -> Root:
        """The image, made if it is not here yet. Raises `ImageBuildError`."""

    async def python_versions(self) -> tuple[str, ...]:
        """Minor versions that images can be made for here; empty = any."""

    def hold(self, image_id: str) -> Callable[[], None]:
        """The image stays on this machine until the answer is called, which any thread may do, once."""

    def here(self) -> tuple[str, ...]:
        """Ids of images that are on this machine, those used last first."""

    async def sweep(self, now: float) -> Freed:
        """Remove what was used least recently, until the rest fits; never what is held. Raises `OSError`."""

    async def prune(self, unwanted: Unwanted, now: float, *, dry_run: bool) -> Freed:
        """Remove images that nothing needs; never what is held. Raises `OSError`."""

    def close(self) -> None:
        """None of them is used any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSettings:
    """What the agent decides about this backend."""

    data_dir: Path
    """Everything lies below it; shared by nobody else."""
    memory_mib: int
    """Of all sandboxes together."""
    max_templates: int = 16
    """The least recently used one is retired above it."""
    processes: int = 2048
    """Of one sandbox, threads included."""
    open_files: int = 65536
    """Of one process."""
    network: NetworkRules | None = field(default_factory=NetworkRules)
    """None: no sandbox has a network."""
    shared: str = ""
    """Folder that all see, for tests of the platform; see `FailPointSettings`."""
    cdi_dirs: str = cdi.DIRECTORIES
    """Folders of CDI files."""


class _Opened(NamedTuple):
    """What every start needs."""

    sdk: SdkFiles
    groups: Groups
    launcher: LauncherLink


class SandboxBackend(StartingBackend[SandboxWanted, SandboxContainer, SandboxTemplate]):
    """See `squall_gpu_agent.backend.Backend`."""

    name = "sandbox"
    isolation = Isolation.SANDBOX
    overhead_mib = 0
    """Memory of ours that is counted in a sandbox's group besides its own."""
    overhead_processes = 0
    """Processes and threads of ours that are."""

    def __init__(self, settings: SandboxSettings, roots: Roots) -> None:
        super().__init__(settings.max_templates)
        self._settings = settings
        self._data = settings.data_dir.absolute()
        self._roots = roots
        self._opening = asyncio.Lock()
        self._open_parts: _Opened | None = None
        self._compiled: dict[str, asyncio.Lock] = {}
        self._networks: Networks | None = None
        self._no_network = "no network in sandboxes: the operator has turned it off"
        self._ids: dict[str, int] = {}
        self._capabilities: Capabilities | None = None
        self._notes: tuple[str, ...] = ()
        """What was found when it was tried."""

    # --- Backend ---

    async def probe(self) -> Capabilities:
        """See `Backend.probe`. Raises `StartFailed` when sandboxes do not work here."""
        if self._capabilities is None:
            with as_start_failure():
                await self._try_a_slot()
                versions = await self._roots.python_versions()
            no_disks = await asyncio.to_thread(disks.trouble, self._data)
            no_disks = no_disks and f"no disks of more than {WRITABLE_MIB} MiB: {no_disks}"
            no_network = self._no_network if self._networks is None else ""
            self._capabilities = Capabilities(
                backend=self.name,
                isolation=self.isolation,
                python_versions=versions,
                mount_namespaces=True,
                huge_pages=await asyncio.to_thread(huge_pages),
                no_disks=no_disks,
                no_buckets=await asyncio.to_thread(self._no_buckets),
                notes=(*self._notes, *filter(None, (no_network, no_disks))),
            )
        return self._capabilities

    def _no_buckets(self) -> str:
        """Why containers cannot have buckets mounted; "" if they can."""
        if self._settings.network is None:
            return self._no_network
        return joining.unusable_here()

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
        await self._kill_containers()
        if self._open_parts is not None:
            await self._open_parts.launcher.close()
            await asyncio.to_thread(self._open_parts.groups.close)
            self._open_parts = None
        if self._networks is not None:
            await asyncio.to_thread(self._networks.close)
        await asyncio.to_thread(shutil.rmtree, self._data / "slots", True)
        self._roots.close()

    # --- parts ---

    async def _opened(self) -> _Opened:
        async with self._opening:
            if self._open_parts is None:
                sdk, groups = await asyncio.to_thread(self._open)
                self._open_parts = _Opened(sdk, groups, self._new_launcher())
            elif not self._open_parts.launcher.alive:
                self._open_parts = self._open_parts._replace(launcher=self._new_launcher())
            return self._open_parts

    def _new_launcher(self) -> LauncherLink:
        return LauncherLink(self._data / "stage")

    def _open(self) -> tuple[SdkFiles, Groups]:
        if os.geteuid() != 0:
            raise OSError(0, f"the {self.name} backend needs an agent that runs as root")
        if not seccomp.supported(kernel.MACHINE):
            raise OSError(0, f"the {self.name} backend has no list of system calls for {kernel.MACHINE}")
        found = cgroups.find()
        if isinstance(found, str):
            raise OSError(0, found)
        tag = hashlib.sha256(str(self._data).encode()).hexdigest()
        groups = Groups(f"squall-{tag[:12]}", found)
        groups.open(self._settings.memory_mib)
        shutil.rmtree(self._data / "slots", ignore_errors=True)  # of an agent that was killed
        remove(self._data / "changes")
        for folder in ("slots", "stage", "nothing", "changes"):
            (self._data / folder).mkdir(parents=True, exist_ok=True)
        self._open_network(tag[:6])
        return sdk_files.install(self._data), groups

    def _open_network(self, tag: str) -> None:
        rules = self._settings.network
        if rules is None:
            return
        self._no_network = network.missing()
        if not self._no_network:
            networks = Networks(tag, rules)
            try:
                networks.open()
            except OSError as error:
                self._no_network = f"no network in sandboxes: {error}"
            else:
                self._networks = networks

    async def _compile(self, sdk: SdkFiles, version: str) -> None:
        """Byte-code of the platform's files, by an interpreter of this machine: containers see them read-only.

        Without one of that version, each start of such an image takes 0.2 s longer.
        """
        async with self._compiled.setdefault(version, asyncio.Lock()):
            done = sdk.sdk.with_name(f".compiled-{version}")
            if not done.exists():
                found = [p for p in await interpreters.installed() if p.minor == ".".join(version.split(".")[:2])]
                if found:
                    await asyncio.to_thread(sdk_files.compile_with, found[0].path, sdk)
                done.touch()

    async def _try_a_slot(self) -> None:
        _, groups, launcher = await self._opened()
        name = f"probe-{next(self._numbers)}"
        group = groups.make(name, Limits(memory_mib=64, processes=16, cpu=0.1))
        slot = launcher.make(self._plan(name, PROBE_IDS, [str(self._data / "nothing")], group), group)
        try:
            async with asyncio.timeout(PROBE_S):
                await slot.until_made()
        finally:
            launcher.kill(slot)
            launcher.release(slot)

    def _plan(self, name: str, ids: int, layers: list[str], group: Group) -> SlotPlan:
        folder = self._data / "slots" / name
        folder.mkdir()
        hosts = f"127.0.0.1 localhost\n::1 localhost\n127.0.0.1 {name}\n"
        return SlotPlan(
            slot=name,
            hostname=name,
            ids=ids,
            layers=layers,
            binds=[],
            files={"/etc/hostname": f"{name}\n", "/etc/hosts": hosts, "/etc/resolv.conf": self._resolv_conf()},
            folder=str(folder),
            writable_mib=WRITABLE_MIB,
            shared_memory_mib=SHARED_MEMORY_MIB,
            open_files=self._settings.open_files,
            cgroups=group.paths,
        )

    async def _wanted(self, request: ContainerRequest, on_log: OnLog) -> SandboxWanted:
        sdk = (await self._opened()).sdk
        devices = await self._devices(request)
        request = replace(request, gpu_env={**devices.env, **request.gpu_env})
        await self._compile(sdk, request.spec.image.python_version)

        def on_line(line: str) -> None:
            on_log(Log(container=request.container_id, stream="system", text=line + "\n"))

        root = await self.ensure_root(request.spec.image, on_line)
        return SandboxWanted(
            name=request.container_id,
            request=request,
            root=root,
            sdk=sdk,
            shared=self._settings.shared,
            devices=devices,
        )

    async def _devices(self, request: ContainerRequest) -> Edits:
        """What its devices need. Raises `StartFailed`."""
        try:
            found = await asyncio.to_thread(cdi.edits, self._settings.cdi_dirs, request.gpus)
            if found.libraries and not LDCONFIG_OF_HOST:
                raise cdi.CdiError("this machine has no ldconfig to let containers find the libraries of its devices")
        except cdi.CdiError as error:
            raise StartFailed(StartFailureKind.INFRA, str(error)) from error
        return found

    def _disks(self, wanted: SandboxWanted) -> dict[str, int]:
        return {"/": _disk_mib(wanted)}

    async def _disk(self, wanted: SandboxWanted) -> Disk | None:
        """The one that it needs; None where its files are kept in memory. Raises `SpawnFailed`."""
        mib = _disk_mib(wanted)
        if mib <= WRITABLE_MIB:
            return None
        try:
            return await asyncio.to_thread(disks.make, self._data, mib)
        except OSError as error:
            raise SpawnFailed(f"no room for ephemeral_disk={mib}: {error.strerror or error}") from error

    def _slot(
        self,
        wanted: SandboxWanted,
        run: Run | None,
        descriptors: list[int],
        inside: str = "",
        disk: Disk | None = None,
    ) -> Slot:
        """Begin to make a slot for it."""
        if self._open_parts is None:
            raise SpawnFailed("the backend is closed")
        _, groups, launcher = self._open_parts
        resources = wanted.request.spec.resources
        name = f"sb-{next(self._numbers)}"
        memory_mib = resources.memory_limit_mib and resources.memory_limit_mib + self.overhead_mib
        processes = self._settings.processes + self.overhead_processes
        limits = Limits(memory_mib=memory_mib, processes=processes, cpu=max(resources.cpu, 0.01))
        group = groups.make(name, limits)
        plan = self._plan(name, self._ids_of(wanted.request.app_id), wanted.layers(), group)
        changes = self._data / "changes" / name
        if wanted.request.volumes:
            self._make_changes(changes, len(wanted.request.volumes), plan.ids)
        plan = plan._replace(
            binds=[*plan.binds, *wanted.binds(Path(plan.folder), changes)],
            overlays=wanted.overlays(changes),
            links=[list(link) for link in wanted.devices.links],
            libraries=list(wanted.devices.libraries),
            buckets=wanted.buckets(),
            run=run,
            inside=inside,
            writable_mib=_disk_mib(wanted),
            device=disk.path if disk is not None else "",
        )
        slot = launcher.make(plan, group, descriptors)
        loop = asyncio.get_running_loop()
        if disk is not None:  # until the launcher has mounted it, or will not
            slot.made.add_done_callback(lambda _: loop.run_in_executor(None, disk.close))
        slot.on_removed.append(lambda: remove(changes))
        slot.memory_mib = resources.memory_limit_mib
        slot.on_removed.append(self._roots.hold(wanted.root.image_id))
        self._connect(slot, wanted.request.spec)
        return slot

    def _make_changes(self, changes: Path, count: int, ids: int) -> None:
        for number in range(count):
            for name in ("upper", "work"):
                folder = changes / str(number) / name
                folder.mkdir(parents=True, mode=0o755)
                os.chown(folder, ids, ids)

    def _connect(self, slot: Slot, spec: FunctionSpec) -> None:
        """Give a slot its network once it is made; from then on it is `ready`."""
        networks = None if spec.block_network else self._networks
        loop = asyncio.get_running_loop()

        def connect() -> Link:
            assert networks is not None
            return networks.connect(slot.init, spec.outbound_cidr_allowlist)

        def connected(done: asyncio.Future[Link]) -> None:
            assert networks is not None
            if done.exception() is not None:
                slot.ready.set_exception(SpawnFailed(f"no network: {done.exception()}"))
                return
            if slot.removed:  # it ended meanwhile, and nobody looks at `on_removed` any more
                loop.run_in_executor(None, networks.disconnect, done.result())
            slot.on_removed.append(lambda: networks.disconnect(done.result()))
            slot.ready.set_result(None)

        def made(done: asyncio.Future[int]) -> None:
            if done.exception() is not None:
                slot.ready.set_exception(SpawnFailed(str(done.exception())))
            elif networks is None:
                slot.ready.set_result(None)
            else:
                loop.run_in_executor(None, connect).add_done_callback(connected)

        slot.made.add_done_callback(made)

    def _resolv_conf(self) -> str:
        servers = network.name_servers() if self._networks is not None else []
        return "".join(f"nameserver {address}\n" for address in servers)

    def _ids_of(self, app: str) -> int:
        """Each app has host ids of its own: no process of one is the owner of anything of another's."""
        if app not in self._ids:
            place = 1 + len(self._ids)
            if FIRST_ID + place * IDS_EACH > LAST_ID:
                raise SpawnFailed("this agent has run more than 4,000 apps since it started; restart it")
            self._ids[app] = FIRST_ID + place * IDS_EACH
        return self._ids[app]

    # --- StartingBackend ---

    async def _new_container(
        self, wanted: SandboxWanted, found: SandboxTemplate | NoTemplate, on_log: OnLog
    ) -> tuple[SandboxContainer, RunnerLink]:
        launcher = (await self._opened()).launcher
        nowhere = self._data / "nothing"
        link = RunnerLink(wanted.name, nowhere, nowhere, on_log)
        fork = None
        if isinstance(found, SandboxTemplate):
            fork = found.take() if _alike(wanted) else Fork(await self._own_slot(wanted, found))
        container = self._container(wanted.name, link, None if fork is None else fork.slot, launcher)
        container.fork = fork
        container.inside = Inside(start=partial(container.enter, wanted))
        return container, link

    async def _own_slot(self, wanted: SandboxWanted, template: SandboxTemplate) -> Slot:
        return self._slot(wanted, None, [], template.slot.name, await self._disk(wanted))

    def _container(self, name: str, link: RunnerLink, slot: Slot | None, launcher: LauncherLink) -> SandboxContainer:
        return SandboxContainer(name, link, slot, launcher)

    def _ends(self, container: SandboxContainer, link: RunnerLink) -> Ends:
        """See `StartingBackend._ends`."""
        if container.fork is None:
            return Ends(link.pipes)
        container.fork.ends.attach(link.pipes)
        return container.fork.ends

    async def _fork_into(
        self, wanted: SandboxWanted, template: SandboxTemplate, container: SandboxContainer, ends: Ends
    ) -> None:
        assert container.fork is not None
        container.how = "fork"
        container.pid = await template.forked(container.fork, container.exited)

    async def _start_fresh(self, wanted: SandboxWanted, container: SandboxContainer, ends: Ends) -> dict[str, Any]:
        container.how = "fresh"
        variables = {**launch.shared_variables(wanted), **launch.own_variables(wanted)}
        argv = launch.command(wanted.root.python, SDK)
        container.move(self._slot(wanted, Run(argv, variables), ends.theirs, disk=await self._disk(wanted)))
        assert container.slot is not None
        container.pid = await container.slot.until_made()
        await container.slot.until_ready()
        return launch.setup(wanted, {}, whole_env=False, template=False, forked=False)

    async def _start_template(self, key: str, wanted: SandboxWanted, on_log: OnLog) -> SandboxTemplate:
        launcher = (await self._opened()).launcher
        # A template must not have a device: no fork could share it.
        request = replace(wanted.request, gpus=(), gpu_env={})
        own = replace(wanted, name=f"{key}-{next(self._numbers)}", request=request, devices=cdi.NO_EDITS)
        container = wanted.name

        def on_text(stream: str, text: str) -> None:
            on_log(Log(container=container, stream=stream, text=text))

        pipes = Pipes(on_text)
        ends = Ends(pipes)
        template = SandboxTemplate(key, ends.ours, container, on_log)
        try:
            argv = launch.command(wanted.root.python, SDK)
            run = Run(argv, launch.template_variables(own), may_fork_into_slots=True)
            slot = self._slot(own, run, ends.theirs, disk=await self._disk(own))
        except BaseException:
            template.close()
            pipes.close()
            raise
        finally:
            ends.close_theirs()
        template.slot, template.launcher = slot, launcher
        template.make_slot = lambda: self._slot(wanted, None, [], inside=slot.name)
        template.forks_ahead = _alike(wanted)
        slot.ended.add_done_callback(lambda _: pipes.close())
        launcher.release(slot)
        try:
            template.pid = await slot.until_made()
            await slot.until_ready()
            setup = launch.setup(own, {}, whole_env=False, template=True, forked=False)
            template.setup({**setup, **_terms()})
        except BaseException:
            template.kill()
            template.close()
            raise
        return template

    async def _limit(self, wanted: SandboxWanted, container: SandboxContainer) -> None:
        cores = wanted.request.spec.resources.cpu_limit
        if cores is not None and container.slot is not None:
            await asyncio.to_thread(container.slot.group.cap_cpu, cores)

    def _image_phase(self, wanted: SandboxWanted) -> str:
        return phases.PULL if wanted.root.pulled else phases.IMAGE

    def _written_volume(self, wanted: SandboxWanted, template: SandboxTemplate) -> str:
        """See `StartingBackend._written_volume`."""
        for overlay, volume in zip(template.slot.plan.overlays, wanted.request.volumes, strict=True):
            with os.scandir(os.path.join(overlay.above, "upper")) as entries:
                if next(entries, None) is not None:
                    return volume.mount.path
        return ""

    def _running(self, container: SandboxContainer) -> None:
        container.watch_disk()

    def _ended(self, container: RunnerContainer) -> None:
        """Nothing is left to sweep: the kernel ended all of its pid namespace."""


def _disk_mib(wanted: SandboxWanted) -> int:
    return wanted.request.spec.resources.ephemeral_disk_mib or WRITABLE_MIB


def _alike(wanted: SandboxWanted) -> bool:
    """One slot of its function is like the others, and may be made ahead: it has no volumes as of now, no devices, and
    no disk, which takes room."""
    return not (wanted.request.volumes or wanted.request.gpus or _disk_mib(wanted) > WRITABLE_MIB)


def _terms() -> dict[str, object]:
    """What forks of a template keep when they enter a slot."""
    mask = sum(1 << number for number in first.BASIC)
    return {"slot_capabilities": mask, "slot_filter": base64.b64encode(seccomp.program(kernel.MACHINE)).decode()}
