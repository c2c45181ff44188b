"""Roots of sandboxes from the store of layered images."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from squall.errors import ImageBuildError
from squall.spec import ImageSpec
from squall_gpu_agent.backend import OnText, Root
from squall_images.distribution import Distribution
from squall_images.layered import LayerFolder
from squall_images.registry import Registry, read_auths
from squall_images.store import BuildSettings, LayerStore


class LayerRoots:
    """See `squall_gpu_agent.backends.sandbox.backend.Roots`."""

    def __init__(self, images: Path, *, registry: str = "", registry_auth: str = "") -> None:
        folder = LayerFolder(images.absolute())
        share = Distribution(folder=folder, registry=Registry(read_auths(registry_auth)), default=registry)
        # Builders build: what is neither here nor in the registry is told as missing.
        self._store = LayerStore(folder.home, share=share, settings=BuildSettings(builds=False))
        self._pins = ExitStack()
        self._pinned: set[str] = set()

    def close(self) -> None:
        """Nothing of them is used any more."""
        self._pins.close()

    async def ensure_root(self, image: ImageSpec, on_line: OnText) -> Root:
        """See `Roots.ensure_root`. An image that was asked for stays on this machine as long as the agent runs."""
        if image.id not in self._pinned:
            self._pinned.add(image.id)
            self._pins.enter_context(self._store.pinned(image.id))
        found = await self._store.ensure(image, on_line)
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
        )

    async def python_versions(self) -> tuple[str, ...]:
        """See `Roots.python_versions`. Any: which bases there are is known when one is asked for."""
        return ()
