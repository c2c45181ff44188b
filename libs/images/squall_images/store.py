"""The store of layered images: makes what is missing, once, and hands out what is there.

Owns the order of things: base, then one layer after the other, each found, pulled or built, and published by rename.
Equal prefixes are made once; concurrent requests for one layer wait for the first, also across processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from squall.errors import ImageBuildError
from squall.spec import ImageSpec, digest
from squall_images import build_steps, chain, eviction, interpreters, pythons, uv
from squall_images.bases import Bases
from squall_images.build_room import OnLine, Room
from squall_images.build_steps import Fetch, Making
from squall_images.chain import PATH, PIP, Configuration, Step
from squall_images.distribution import Distribution
from squall_images.egress import EgressRules
from squall_images.eviction import Freed
from squall_images.interpreters import Interpreter
from squall_images.layered import KEY_DIGITS, Description, LayeredImage, LayerFolder, Python
from squall_images.locks import file_lock, to_its_end
from squall_images.pip_layer import PipStep


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """How images are made here."""

    rules: EgressRules = field(default_factory=EgressRules)
    step_timeout_s: float = 3600.0
    """Most that one step may take."""
    builds: bool = True
    """False: what is not here and in no registry is an error; another machine builds."""


class LayerStore:
    """One per process; any number of processes per folder."""

    def __init__(
        self,
        home: Path,
        *,
        bases: Bases | None = None,
        fetch: Fetch | None = None,
        settings: BuildSettings | None = None,
        share: Distribution | None = None,
        program: Path | None = None,
    ) -> None:
        self.folder = LayerFolder(home)
        self._bases = bases or Bases(self.folder, pull=None if share is None else share.pull)
        self._fetch = fetch or _no_files
        self._share = share
        self._settings = settings or BuildSettings()
        self._uv = program
        self._locks: dict[str, asyncio.Lock] = {}
        self._installed: list[Interpreter] | None = None
        self._open = False

    async def ensure(self, image: ImageSpec, on_line: OnLine) -> LayeredImage:
        """The image, made if needed. Raises `ImageBuildError` with the step, its output and exit code."""
        if not self._open:
            await asyncio.to_thread(self.folder.open)
            self._open = True
        found = self.folder.described(image.id)
        if found is None:
            async with self._locks.setdefault(image.id, asyncio.Lock()):
                found = self.folder.described(image.id) or await self._make(image, on_line)
                self.folder.describe(found)
        else:
            self.folder.used(image.id)
        return self.folder.ready(found)

    def pinned(self, image_id: str) -> AbstractContextManager[None]:
        """As long as the block runs, the image stays on this machine. Pin it, then ensure it."""
        return eviction.pinned(self.folder, image_id)

    async def sweep(self, limit_bytes: int, now: float) -> Freed:
        """Remove what was used least recently, until the rest fits; never what is pinned."""
        return await asyncio.to_thread(eviction.sweep, self.folder, limit_bytes, now)

    async def _make(self, image: ImageSpec, on_line: OnLine) -> Description:
        if self._share is not None:
            taken = await self._share.take(image.id, on_line)
            if taken is not None:
                return taken
        if not self._settings.builds:
            raise ImageBuildError(
                f"image {image.id} is not on this machine, and it builds none", fix="Build it first: deploy the app."
            )
        plan = chain.chain(image)
        base = await self._bases.find(plan.base, on_line)
        plan = chain.chain(image, base.start)
        key = base.layers[-1] if base.layers else digest({"base": base.image_id})[:KEY_DIGITS]
        layers, python = list(base.layers), base.python
        if python is None and base.layers:
            python = await self._python(key, tuple(layers), base.start)
        if not any(step.kind == "add_python" for step in plan.steps):
            pythons.fits(python, plan.python_version)
        for step in plan.steps:
            before, key = key, step.key(key, os.uname().machine)[:KEY_DIGITS]
            async with self._making(key) as staging:
                if staging is not None:
                    on_line(step.title)
                    await self._make_layer(step, _Below(before, tuple(layers), python), staging, on_line)
                    await to_its_end(self.folder.publish, staging, key, {"title": step.title, "kind": step.kind})
            layers.append(key)
            if step.kind not in PIP and step.kind != "add_local":
                python = await self._python(key, tuple(layers), step.seen)
        if python is not None:
            pythons.fits(python, plan.python_version)
        return Description(image_id=image.id, layers=tuple(layers), python=python, start=plan.configuration(base.start))

    async def _make_layer(self, step: Step, below: _Below, staging: Path, on_line: OnLine) -> None:
        room = Room(tuple(map(self.folder.layer, below.layers)), staging, self._settings.rules)
        if step.kind in PIP:
            if below.python is None:
                raise ImageBuildError(
                    f"the image has no Python for {step.title}", fix="Give `add_python=` to from_registry."
                )
            making = PipStep(
                title=step.title,
                arguments=step.arguments,
                python=below.python,
                room=room,
                env={"PATH": PATH, **step.seen.env},
                home=self.folder.home,
                uv=self._uv or uv.program(),
                installed=await self._interpreters(),
            )
            await making.make(on_line)
        elif step.kind == "add_python":
            await self._bases.add_python(str(step.arguments.get("version", "")), room.changes, on_line)
        else:
            await build_steps.make(
                Making(
                    step=step,
                    room=room,
                    python=below.python,
                    home=self.folder.home,
                    before=below.key,
                    fetch=self._fetch,
                    timeout_s=self._settings.step_timeout_s,
                ),
                on_line,
            )
        await asyncio.to_thread(room.changes.mkdir, parents=True, exist_ok=True)

    async def _python(self, key: str, layers: tuple[str, ...], start: Configuration) -> Python | None:
        """The interpreter of a prefix; asked once."""
        name = f"python:{key}"
        found = self.folder.base(name)
        if found is None:
            staging = self.folder.staging(f"python-{key}")
            try:
                room = Room(tuple(map(self.folder.layer, layers)), staging)
                python = await pythons.find(room, {"PATH": PATH, **start.env})
            finally:
                await to_its_end(shutil.rmtree, staging, True)
            found = Description(image_id=name, layers=(), python=python, start=Configuration())
            self.folder.register(name, found)
        return found.python

    async def _interpreters(self) -> list[Interpreter]:
        if self._installed is None:
            self._installed = await interpreters.installed()
        return self._installed

    @contextlib.asynccontextmanager
    async def _making(self, key: str) -> AsyncIterator[Path | None]:
        """The right to make one layer, with a staging folder; None when it is there by the time we have it."""
        if self.folder.has(key):
            yield None
            return
        lock = self.folder.home / "locks" / key
        async with self._locks.setdefault(key, asyncio.Lock()), file_lock(lock):
            if self.folder.has(key):
                yield None
                return
            staging = self.folder.staging(key)
            try:
                await to_its_end(_emptied, staging)
                yield staging
            finally:
                await to_its_end(shutil.rmtree, staging, True)


@dataclass(frozen=True, slots=True)
class _Below:
    key: str
    layers: tuple[str, ...]
    python: Python | None


def _emptied(staging: Path) -> None:
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)


async def _no_files(reference: object, folder: Path) -> None:
    raise ImageBuildError(
        "files of users cannot be had here", fix="Build the image on a builder, which has a blob store."
    )
