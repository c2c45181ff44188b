"""Slots of the sandbox backend: everything of a container but its program.

Owns one data folder, one group of control groups, the networks, and everything below its launcher. Knows what a slot
is made of (the plan), not which processes come into it: that is backend.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from squall.spec import FunctionSpec
from squall_gpu_agent import cdi
from squall_gpu_agent.backend import (
    Capabilities,
    ContainerRequest,
    Log,
    OnLog,
    StartFailed,
    StartFailureKind,
)
from squall_gpu_agent.backends import sdk_files
from squall_gpu_agent.backends.sandbox import disks, kernel, network
from squall_gpu_agent.backends.sandbox.container import SandboxContainer
from squall_gpu_agent.backends.sandbox.disks import Disk
from squall_gpu_agent.backends.sandbox.network import Link, Networks
from squall_gpu_agent.backends.sandbox.settings import (
    FIRST_ID,
    IDS_EACH,
    LAST_ID,
    PROBE_IDS,
    PROBE_S,
    SHARED_MEMORY_MIB,
    WRITABLE_MIB,
    Roots,
    SandboxSettings,
)
from squall_gpu_agent.backends.sandbox.slots import LauncherLink, Slot
from squall_gpu_agent.backends.sandbox.template import SandboxTemplate
from squall_gpu_agent.backends.sandbox.wanted import LDCONFIG_OF_HOST, SandboxWanted
from squall_gpu_agent.backends.sandbox.words import Run, SlotPlan
from squall_gpu_agent.backends.sdk_files import SdkFiles
from squall_gpu_agent.backends.starting import StartingBackend
from squall_gpu_agent.backends.warden_link import SpawnFailed
from squall_gpu_agent.cdi import Edits
from squall_gpu_agent.volumes.trees import remove
from squall_images import interpreters
from squall_isolation import cgroups, seccomp
from squall_isolation.cgroups import Group, Groups, Limits


class _Opened(NamedTuple):
    """What every start needs."""

    sdk: SdkFiles
    groups: Groups
    launcher: LauncherLink


class SlotBackend(StartingBackend[SandboxWanted, SandboxContainer, SandboxTemplate]):
    """The half of the sandbox backend that makes slots."""

    name = "sandbox"

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

        root = await self._roots.ensure_root(request.spec.image, on_line)
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
        return {"/": wanted.disk_mib}

    async def _disk(self, wanted: SandboxWanted) -> Disk | None:
        """The one that it needs; None where its files are kept in memory. Raises `SpawnFailed`."""
        mib = wanted.disk_mib
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
        """Begin to make a slot for it. `disk` is the slot's from now on.

        Raises `OSError`, `SpawnFailed`; then nothing is left of it.
        """
        name = f"sb-{next(self._numbers)}"
        try:
            return self._begin_slot(name, wanted, run, descriptors, inside, disk)
        except BaseException:
            if disk is not None:
                disk.close()
            remove(self._data / "changes" / name)
            with contextlib.suppress(OSError):  # it was not made
                os.rmdir(self._data / "slots" / name)
            raise

    def _begin_slot(
        self,
        name: str,
        wanted: SandboxWanted,
        run: Run | None,
        descriptors: list[int],
        inside: str,
        disk: Disk | None,
    ) -> Slot:
        if self._open_parts is None:
            raise SpawnFailed("the backend is closed")
        _, groups, launcher = self._open_parts
        resources = wanted.request.spec.resources
        memory_mib = resources.memory_limit_mib and resources.memory_limit_mib + self.overhead_mib
        processes = self._settings.processes + self.overhead_processes
        limits = Limits(memory_mib=memory_mib, processes=processes, cpu=max(resources.cpu, 0.01))
        ids = self._ids_of(wanted.request.app_id)
        changes = self._data / "changes" / name
        if wanted.request.volumes:
            self._make_changes(changes, len(wanted.request.volumes), ids)
        group = groups.make(name, limits)
        try:
            plan = self._plan(name, ids, wanted.layers(), group)
            plan = plan._replace(
                binds=[*plan.binds, *wanted.binds(Path(plan.folder), changes)],
                overlays=wanted.overlays(changes),
                links=[list(link) for link in wanted.devices.links],
                libraries=list(wanted.devices.libraries),
                buckets=wanted.buckets(),
                run=run,
                inside=inside,
                writable_mib=wanted.disk_mib,
                device=disk.path if disk is not None else "",
            )
            slot = launcher.make(plan, group, descriptors)
        except BaseException:
            group.remove()
            raise
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
            else:
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
