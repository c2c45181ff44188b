"""Roots of sandboxes from the store of layered images."""

from __future__ import annotations

from pathlib import Path

from squall_images.store import LayerStore

from squall.errors import ImageBuildError
from squall.spec import ImageSpec
from squall_gpu_agent.backend import OnText, Root


class LayerRoots:
    """See `squall_gpu_agent.backends.sandbox.backend.Roots`."""

    def __init__(self, images: Path) -> None:
        self._store = LayerStore(images.absolute())

    async def ensure_root(self, image: ImageSpec, on_line: OnText) -> Root:
        """See `Roots.ensure_root`."""
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
