"""What a sandbox is started with: where its code finds things, which folders of the host it sees, its limits. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from squall.spec import DISK_IN_MEMORY_MIB, CodeRef, FunctionSpec, Resources, digest, to_wire
from squall_gpu_agent.backend import ContainerRequest, Root
from squall_gpu_agent.backends.launch import LANG, Place, Wanted, needs_exec
from squall_gpu_agent.backends.sandbox.words import LDCONFIG, Bind, Bucket, Overlay
from squall_gpu_agent.backends.sdk_files import SdkFiles
from squall_gpu_agent.cdi import NO_EDITS, Edits

PLATFORM = "/run/squall"
SCRATCH, SDK, PICKLERS, SOCKET = (f"{PLATFORM}/{name}" for name in ("scratch", "sdk", "picklers", "agent.sock"))
VOLUMES = f"{PLATFORM}/volumes"
# Ubuntu's /sbin/ldconfig is a script around this one. Both are linked statically: any image can run them.
LDCONFIG_OF_HOST = next((path for path in ("/sbin/ldconfig.real", "/sbin/ldconfig") if os.path.exists(path)), "")
_PROGRAMS = ("usr", "lib", "lib64")
"""Folders of the root of which an interpreter has files open before it sees a bundle, besides its own."""
BARE_SIZE = Resources(cpu=1.0)
"""Of bare interpreters: others wait for their forks."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


BARE = {"PATH": PATH, "HOME": "/root", "LANG": LANG, "SQUALL_CONTAINER": "1"}
"""Variables that a bare interpreter is started with; its forks are told all of theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxWanted(Wanted):
    """One of the sandbox backend. Everything is at the same place in all of them."""

    root: Root
    sdk: SdkFiles
    shared: str = ""
    devices: Edits = NO_EDITS
    """What its devices need of the host."""
    above: str = ""
    """A folder on top of all layers, if there is one: what the template wrote whose memory this is a copy of."""
    memory: Bind | None = None
    """The image of a template's memory, to be written or to be read."""

    @property
    def image_env(self) -> Mapping[str, str]:
        """See `Wanted.image_env`."""
        return self.root.env

    @property
    def image_key(self) -> str:
        """See `Wanted.image_key`."""
        return ":".join(map(str, self.root.layers))

    @property
    def place(self) -> Place:
        """See `Wanted.place`."""
        packages = self.root.site_packages
        return Place(
            code_root="/root",
            code_dir="",
            home="/root",
            cwd=self.root.workdir or "/root",
            scratch=SCRATCH,
            tmp="/tmp",
            sdk=SDK,
            picklers=PICKLERS,
            path=PATH,
            prefix="",
            site_packages=(str(packages),) if packages is not None else (),
            socket=SOCKET if self.request.socket_path is not None else "",
        )

    @property
    def declared(self) -> dict[str, str]:
        """See `Wanted.declared`. The agent's socket has another name in here."""
        outside = f"unix:{self.request.socket_path}"
        env = Wanted.declared.fget(self)  # type: ignore[attr-defined]
        return {name: f"unix:{SOCKET}" if value == outside else value for name, value in env.items()}

    @property
    def interpreter_key(self) -> str:
        """What is equal for containers that may be forked from one bare interpreter: one never serves two apps."""
        return "bi-" + digest([self.request.app_id, self.image_key, str(self.root.python)])[:24]

    @property
    def slot_key(self) -> str:
        """What is equal for containers whose slots are alike, as far as `slots_are_alike`."""
        request, spec = self.request, self.request.spec
        terms = [to_wire(spec.resources), spec.block_network, spec.outbound_cidr_allowlist]
        places = [str(self.image_key), str(request.code_dir), str(request.socket_path)]
        return digest([request.app_id, request.function_id, *places, *terms])

    @property
    def disk_mib(self) -> int:
        """Of what it may write."""
        return self.request.spec.resources.ephemeral_disk_mib or DISK_IN_MEMORY_MIB

    @property
    def slots_are_alike(self) -> bool:
        """Whether a slot of its function is like the others, and may be made ahead: it has no volumes as of now, no
        buckets, whose servers are those of one container, no devices, and no disk, which takes room."""
        request = self.request
        return not (request.volumes or request.buckets or request.gpus or self.disk_mib > DISK_IN_MEMORY_MIB)

    def needs_own_interpreter(self) -> bool:
        """Whether what it declares or brings has its effect only in an interpreter that is started with it: variables
        that the loader reads, and files of the bundle where the image has its programs and libraries."""
        own = {**self.declared, **self.request.gpu_env}
        folders = {*_PROGRAMS, self.root.python.parts[1]}
        return needs_exec(own) or any((self.request.code_dir / name).exists() for name in folders)

    def bare(self, name: str, nothing: Path) -> SandboxWanted:
        """An interpreter of its image with nobody's code, in a slot of its own. `nothing`: an empty folder."""
        image = self.request.spec.image
        spec = FunctionSpec(name="", code=CodeRef("", "", ""), image=image, resources=BARE_SIZE, block_network=True)
        request = ContainerRequest(
            container_id=name, app_id=self.request.app_id, function_id="", spec=spec, code_dir=nothing
        )
        return SandboxWanted(name=name, request=request, root=self.root, sdk=self.sdk)

    def layers(self) -> list[str]:
        """The image's, and the bundle on top of them: its files are where they belong."""
        below = [str(layer.absolute()) for layer in (*self.root.layers, self.request.code_dir)]
        return [*below, self.above] if self.above else below

    def volume_places(self, number: int) -> tuple[str, str]:
        """See `Wanted.volume_places`."""
        return f"{VOLUMES}/{number}/changed", f"{VOLUMES}/{number}/all"

    def overlays(self, changes: Path) -> list[Overlay]:
        """Its volumes; what it changes goes to numbered folders below `changes`."""
        return [
            Overlay(
                lower=str(volume.lower),
                above=str(changes / str(number)),
                target=volume.mount.path,
                inner=self.volume_places(number)[1],
                read_only=volume.mount.read_only,
            )
            for number, volume in enumerate(self.request.volumes)
        ]

    def buckets(self) -> list[Bucket]:
        """Its buckets."""
        return [Bucket(str(each.server), each.path, each.read_only) for each in self.request.buckets]

    def binds(self, slot_folder: Path, changes: Path) -> list[Bind]:
        """What it sees of the host besides."""
        binds = [
            Bind(str(self.sdk.sdk), SDK),
            Bind(str(self.sdk.picklers), PICKLERS),
            Bind(str(slot_folder / "scratch"), SCRATCH, writable=True, mapped=False),
        ]
        if self.request.socket_path is not None:
            binds.append(Bind(str(self.request.socket_path), SOCKET, writable=True, mapped=False))
        if self.shared:
            binds.append(Bind(self.shared, self.shared, writable=True, mapped=False))
        binds += [Bind(each.source, each.target, each.writable, mapped=False) for each in self.devices.mounts]
        binds += [
            Bind(each.source, each.target, writable=True, mapped=False, device=True) for each in self.devices.nodes
        ]
        if self.devices.libraries:
            binds.append(Bind(LDCONFIG_OF_HOST, LDCONFIG, mapped=False))
        volumes = range(len(self.request.volumes))
        changed = [Bind(str(changes / str(n) / "upper"), self.volume_places(n)[0], mapped=False) for n in volumes]
        return binds + changed + ([self.memory] if self.memory is not None else [])
