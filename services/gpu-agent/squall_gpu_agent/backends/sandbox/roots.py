"""Roots of sandboxes: images as layers on this machine, pulled by digest, kept within a share of the disk.

Owns which images are pinned: those that something runs of, and those that were asked for a short while ago.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from squall.errors import ImageBuildError
from squall.spec import ImageSpec
from squall_gpu_agent.backend import OnText, Root
from squall_images.distribution import Distribution
from squall_images.eviction import Freed, Unwanted
from squall_images.layered import LayeredImage, LayerFolder
from squall_images.registry import Registry, Unreachable, read_auths
from squall_images.store import BuildSettings, LayerStore, ManifestOf

ASKED_S = 600.0
"""An image stays this long after it was asked for, or its last container has ended."""
TOLD = 256
"""Images that the scheduler hears of: its choice needs those used last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootSettings:
    """What an operator says about images on a machine."""

    registry: str = ""
    registry_auth: str = ""
    keep_gib: float = 100.0


@dataclass(slots=True)
class _Pin:
    until_released: ExitStack
    asked_at: float
    holders: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class LayerRoots:
    """See `squall_gpu_agent.backends.sandbox.backend.Roots`."""

    def __init__(
        self,
        images: Path,
        settings: RootSettings | None = None,
        *,
        manifest_of: ManifestOf | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        chosen = settings or RootSettings()
        folder = LayerFolder(images.absolute())
        share = Distribution(
            folder=folder, registry=Registry(read_auths(chosen.registry_auth)), default=chosen.registry
        )
        # Builders build: what is neither here nor in the registry is told as missing.
        self._store = LayerStore(
            folder.home, share=share, settings=BuildSettings(builds=False, manifest_of=manifest_of)
        )
        self._keep_bytes = int(chosen.keep_gib * (1 << 30))
        self._pins: dict[str, _Pin] = {}
        self._monotonic = monotonic

    def close(self) -> None:
        """Nothing of them is used any more."""
        for pin in self._pins.values():
            pin.until_released.close()
        self._pins.clear()

    async def ensure_root(self, image: ImageSpec, on_line: OnText) -> Root:
        """See `Roots.ensure_root`."""
        release = self.hold(image.id)
        try:
            pulled: list[str] = []

            def heard(line: str) -> None:
                pulled.append(line)
                on_line(line)

            try:
                found = await self._store.ensure(image, heard)
            except Unreachable as error:
                raise OSError(0, error.message) from error  # the machine's trouble, not the image's
        finally:
            release()
        return _root(found, pulled=bool(pulled))

    def hold(self, image_id: str) -> Callable[[], None]:
        """The image stays on this machine until the answer is called, which any thread may do, once."""
        pin = self._pins.get(image_id)
        if pin is None:
            pin = _Pin(ExitStack(), self._monotonic())
            pin.until_released.enter_context(self._store.pinned(image_id))
            self._pins[image_id] = pin
        held = pin
        with held.lock:
            held.holders += 1
            held.asked_at = self._monotonic()

        def release() -> None:
            with held.lock:
                held.holders -= 1
                held.asked_at = self._monotonic()

        return release

    def here(self) -> tuple[str, ...]:
        """See `Roots.here`."""
        try:
            return tuple(self._store.folder.image_ids()[:TOLD])
        except FileNotFoundError:
            return ()

    async def sweep(self, now: float) -> Freed:
        """See `Roots.sweep`."""
        self._unpin()
        return await self._store.sweep(self._keep_bytes, now)

    async def prune(self, unwanted: Unwanted, now: float, *, dry_run: bool) -> Freed:
        """See `Roots.prune`."""
        self._unpin()
        return await self._store.prune(unwanted, now, dry_run=dry_run)

    def _unpin(self) -> None:
        for image_id, pin in list(self._pins.items()):
            with pin.lock:
                unused = not pin.holders and self._monotonic() - pin.asked_at > ASKED_S
            if unused:
                del self._pins[image_id]
                pin.until_released.close()

    async def python_versions(self) -> tuple[str, ...]:
        """See `Roots.python_versions`. Any: which bases there are is known when one is asked for."""
        return ()


def _root(found: LayeredImage, pulled: bool) -> Root:
    if not found.python:
        raise ImageBuildError(
            f"image {found.image_id} has no Python, which functions need",
            fix="Give `add_python=` to from_registry, or start from debian_slim.",
        )
    return Root(
        image_id=found.image_id,
        python=Path(found.python),
        site_packages=Path(found.site_packages) if found.site_packages else None,
        env=found.env,
        layers=found.layers,
        workdir=found.workdir,
        pulled=pulled,
    )
