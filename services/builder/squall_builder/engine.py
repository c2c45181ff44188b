"""Engine: makes an image in the folder of environments, and reads off what exactly is in it. The adapter to
squall_images; knows neither bus nor records."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from squall.spec import ImageSpec
from squall_images.environments import EnvironmentStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A finished image."""

    lock: tuple[str, ...]
    """`name==version` of everything in it, sorted."""
    python: str
    """The interpreter's version, such as "3.11"."""


class Engine:
    """The image builder of one folder."""

    def __init__(self, images_dir: Path) -> None:
        images_dir.mkdir(parents=True, exist_ok=True)
        self._store = EnvironmentStore(images_dir)

    async def build(self, spec: ImageSpec, on_line: Callable[[str], None]) -> Built:
        """Make the image unless it is there. Raises `ImageBuildError` with step, output and exit code."""
        environment = await self._store.ensure(spec, on_line)
        lock = await asyncio.to_thread(exact_packages, environment.site_packages)
        return Built(lock=lock, python=spec.python_version)


def exact_packages(site_packages: Path) -> tuple[str, ...]:
    """What is installed in a folder."""
    found = {
        f"{name.lower().replace('_', '-')}=={distribution.version}"
        for distribution in distributions(path=[str(site_packages)])
        if (name := distribution.metadata["Name"])
    }
    return tuple(sorted(found))
