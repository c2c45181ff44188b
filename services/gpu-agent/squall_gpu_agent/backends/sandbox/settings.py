"""What the agent decides about isolated containers, and what it needs of their images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from squall.spec import DISK_IN_MEMORY_MIB, ImageSpec
from squall_gpu_agent import cdi
from squall_gpu_agent.backend import OnText, Root
from squall_gpu_agent.backends.sandbox.network import NetworkRules
from squall_images.eviction import Freed, Unwanted

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
