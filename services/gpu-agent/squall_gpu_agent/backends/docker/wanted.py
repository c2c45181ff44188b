"""What an engine's container is started with: the request to the engine, with every limit. Reads folders, writes none.

The container's root is the image, read-only; what it may write is memory of bounded size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squall_gpu_agent.backends import oci_seccomp
from squall_gpu_agent.backends.docker import image, inside, volumes
from squall_gpu_agent.backends.sandbox import kernel
from squall_gpu_agent.backends.sandbox.wanted import SandboxWanted
from squall_gpu_agent.backends.sandbox.words import Overlay

AGENT_LABEL = "squall.agent"
WRITABLE = ("/root", "/tmp", "/var/tmp")
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one container."""

    memory_mib: int
    processes: int
    open_files: int
    writable_mib: int
    shared_memory_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerWanted(SandboxWanted):
    """One of the Docker backend. Things are where they are in sandboxes."""

    def body(self, *, image_name: str, folder: Path, user: int, limits: Limits, tag: str, argv: Sequence[str]) -> Any:
        """The request to create it."""
        resources = self.request.spec.resources
        memory = limits.memory_mib * _MIB
        return {
            "Image": image_name,
            "Entrypoint": list(argv),
            "Cmd": [],
            "User": f"{user}:{user}",
            "WorkingDir": "/",
            "Hostname": folder.name,
            "Labels": {AGENT_LABEL: tag},
            "HostConfig": {
                "Mounts": [
                    {"Type": "bind", "Source": source, "Target": target, "ReadOnly": not writable}
                    for source, target, writable in self._binds(folder)
                ],
                "Tmpfs": dict(_writable(limits, user)),
                "ShmSize": limits.shared_memory_mib * _MIB,
                "Memory": memory,
                "MemorySwap": memory,
                "PidsLimit": limits.processes,
                "CpuShares": max(2, int(resources.cpu * 1024)),
                "Ulimits": [
                    {"Name": "nofile", "Soft": limits.open_files, "Hard": limits.open_files},
                    {"Name": "core", "Soft": 0, "Hard": 0},
                ],
                "ReadonlyRootfs": True,
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges", f"seccomp={json.dumps(oci_seccomp.profile(kernel.MACHINE))}"],
                "NetworkMode": "none",
                "IpcMode": "private",
                "PidMode": "",
                "LogConfig": {"Type": "none"},
                "DeviceRequests": self._devices(),
                "RestartPolicy": {"Name": "no"},
            },
        }

    def mounted(self, folder: Path) -> list[Overlay]:
        """Its volumes, in its folder on the host."""
        return self.overlays(folder / volumes.FOLDER)

    def _devices(self) -> list[dict[str, Any]]:
        """Its own GPUs, by the engine's driver for them: NVIDIA's toolkit, which mounts its libraries too."""
        if not self.request.gpus:
            return []
        wanted = ["gpu", "compute", "utility"]
        return [{"Driver": "nvidia", "DeviceIDs": list(self.request.gpus), "Capabilities": [wanted]}]

    def _binds(self, folder: Path) -> Iterator[tuple[str, str, bool]]:
        yield str(folder / "door"), os.path.dirname(inside.DOOR), False
        for bind in self.binds(folder / "own", folder / volumes.FOLDER):
            yield bind.source, bind.target, bind.writable
        for overlay in self.mounted(folder):
            seen = f"{overlay.above}/{volumes.ALL}"
            yield seen, overlay.target, not overlay.read_only
            yield seen, overlay.inner, True
        code = self.request.code_dir.absolute()
        if (code / "root").is_dir():
            yield str(code / "root"), inside.CODE, False
        for number, home in enumerate(layer.absolute() / "root" for layer in self.root.layers):
            # A link of an image would be followed on the host's side: to any folder of the host.
            if not home.is_symlink() and home.is_dir() and any(home.iterdir()):
                yield str(home), f"{inside.HOMES}/{number}", False
        for source, target in _elsewhere(code, self.root.layers):
            yield str(source), target, False


def _writable(limits: Limits, user: int) -> Iterator[tuple[str, str]]:
    size = f"rw,exec,size={limits.writable_mib}m,nr_inodes={limits.writable_mib * 512}"
    for folder in WRITABLE:
        yield folder, f"{size},mode=700,uid={user},gid={user}" if folder == "/root" else f"{size},mode=1777"


def _elsewhere(code: Path, layers: Sequence[Path], below: str = "") -> Iterator[tuple[Path, str]]:
    """What a bundle has outside of /root: the largest parts that hide nothing of the image."""
    for entry in sorted((code / below).iterdir()) if (code / below).is_dir() else ():
        target = f"{below}/{entry.name}".lstrip("/")
        if target == "root":
            continue
        if entry.is_dir() and image.has(layers, target):
            yield from _elsewhere(code, layers, target)
        else:
            yield entry, f"/{target}"
