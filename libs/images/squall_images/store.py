"""The store of layered images: makes what is missing, once, and hands out what is there.

Owns the order of things: base, then one layer after the other, each found, pulled or built, and published by rename.
Equal prefixes are made once; concurrent requests for one layer wait for the first, also across processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from squall.errors import ImageBuildError
from squall.spec import ImageSpec, digest
from squall_images import base_bytecode, build_steps, caches, chain, eviction, interpreters, pythons, step_volumes, uv
from squall_images.bases import Bases
from squall_images.build_limits import StepLimits
from squall_images.build_room import OnLine, Room
from squall_images.build_steps import Fetch, Making
from squall_images.chain import DOCKERFILE_COMMANDS, PATH, PIP, Configuration, Step
from squall_images.distribution import Distribution
from squall_images.dockerfile_steps import Dockerfiles
from squall_images.egress import EgressRules
from squall_images.eviction import Freed, Unwanted
from squall_images.interpreters import Interpreter
from squall_images.layered import KEY_DIGITS, Description, LayeredImage, LayerFolder, Python, configuration
from squall_images.locks import file_lock, to_its_end
from squall_images.pip_layer import PipStep
from squall_images.step_secrets import Secrets, no_secrets, of_step, whose
from squall_images.step_volumes import Volumes, no_volumes
from squall_images.trees import remove

MAKE_AGAIN = 3
"""Times that an image is made when its layers are removed meanwhile."""

ManifestOf = Callable[[str], Awaitable[str]]
"""Digest of the manifest of an image; empty if it is in no registry."""
Timed = Callable[[str, str, int, int], None]
"""Hears of a part of a build when it has ended: kind ("pull", "base" or "step"), title, from and to in nanoseconds."""


class ImageLost(ImageBuildError):
    """An image was built, and is neither on this machine nor in the registry: a builder has to make it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """How images are made here."""

    rules: EgressRules = field(default_factory=EgressRules)
    limits: StepLimits = field(default_factory=StepLimits)
    """Of each step."""
    step_timeout_s: float = 3600.0
    """Most that one step may take."""
    builds: bool = True
    """False: what is not here and in no registry is an error; another machine builds."""
    manifest_of: ManifestOf | None = None
    """Which manifest of the registry is an image, for machines that take nobody's word for it but the builder's; None:
    the one with its name."""


class LayerStore:
    """One per process; any number of processes per folder."""

    def __init__(  # noqa: PLR0913 — its parts, each of which may be missing
        self,
        home: Path,
        *,
        bases: Bases | None = None,
        fetch: Fetch | None = None,
        settings: BuildSettings | None = None,
        share: Distribution | None = None,
        dockerfiles: Dockerfiles | None = None,
        program: Path | None = None,
    ) -> None:
        self.folder = LayerFolder(home)
        self._bases = bases or Bases(self.folder, pull=None if share is None else share.pull)
        self._fetch = fetch or _no_files
        self._share = share
        self._settings = settings or BuildSettings()
        self._dockerfiles = dockerfiles
        self._uv = program
        self._locks: dict[str, asyncio.Lock] = {}
        self._installed: list[Interpreter] | None = None

    async def ensure(
        self,
        image: ImageSpec,
        on_line: OnLine,
        secrets: Secrets = no_secrets,
        timed: Timed | None = None,
        volumes: Volumes = no_volumes,
    ) -> LayeredImage:
        """The image, made if needed; `secrets` opens those of its steps, `volumes` brings theirs. Raises
        `ImageBuildError` with the step, its output and exit code."""
        found = self.folder.described(image.id)
        if found is None:
            await asyncio.to_thread(self.folder.open)  # each time: somebody may have removed all of it
            async with self._locks.setdefault(image.id, asyncio.Lock()):
                found = self.folder.described(image.id) or await self._made(
                    image, _Asked(on_line, secrets, timed or _untimed, volumes)
                )
        else:
            self.folder.used(image.id)
        return self.folder.ready(found)

    def pinned(self, image_id: str) -> AbstractContextManager[None]:
        """As long as the block runs, the image stays on this machine. Pin it, then ensure it."""
        return eviction.pinned(self.folder, image_id)

    async def sweep(self, limit_bytes: int, now: float) -> Freed:
        """Remove what was used least recently, until the rest fits; never what is pinned."""
        return await asyncio.to_thread(eviction.sweep, self.folder, limit_bytes, now)

    async def prune(self, unwanted: Unwanted, now: float, *, dry_run: bool) -> Freed:
        """Remove images that nothing needs, and layers that no image needs then; never what is pinned."""
        return await asyncio.to_thread(eviction.sweep, self.folder, None, now, dry_run, unwanted)

    async def sweep_caches(self, limit_bytes: int) -> int:
        """Keep what only makes builds faster within its size; the bytes that were freed."""
        return await asyncio.to_thread(caches.sweep, self.folder.home, limit_bytes)

    async def _made(self, image: ImageSpec, asked: _Asked) -> Description:
        for _ in range(MAKE_AGAIN):
            found = await self._make(image, asked)
            self.folder.describe(found)
            # A sweep may have removed a layer between our look at it and the description that holds it.
            if all(self.folder.has(key) for key in found.layers):
                return found
        raise ImageBuildError(f"layers of image {image.id} are removed while it is made", fix="Look at the disk.")

    async def _make(self, image: ImageSpec, asked: _Asked) -> Description:
        taken = await self._taken(image, asked)
        if taken is not None:
            return taken
        on_line, secrets = asked.on_line, asked.secrets
        plan = chain.chain(image)
        with _timing(asked.timed, "base", chain.title(plan.base)):
            base = await self._bases.find(plan.base, on_line, await whose(plan.base, secrets), apt=plan.needs_apt)
        plan = chain.chain(image, base.start)
        key = base.layers[-1] if base.layers else digest({"base": base.image_id})[:KEY_DIGITS]
        layers, python = list(base.layers), base.python
        if python is None and base.layers:
            python = await self._python(key, tuple(layers), base.start)
        key, layers = await self._with_bytecode(key, layers, python, on_line)
        if not any(step.kind == "add_python" for step in plan.steps):
            pythons.fits(python, plan.python_version)
        starts: dict[int, Configuration] = {}
        for number in range(len(plan.steps)):
            step = plan.steps[number]
            before, key = key, step.key(key, os.uname().machine)[:KEY_DIGITS]
            async with self._making(key) as staging:
                if staging is not None:
                    on_line(step.title)
                    below = _Below(before, tuple(layers), python, await of_step(step.arguments, secrets), asked.volumes)
                    with self.folder.young(layers), _timing(asked.timed, "step", step.title):
                        more = await self._make_layer(step, below, staging, on_line)
                        about = {"title": step.title, "kind": step.kind, **more}
                        await to_its_end(self.folder.publish, staging, key, about)
            layers.append(key)
            if step.kind == DOCKERFILE_COMMANDS:
                starts[number] = configuration(self.folder.about(key)["start"])
                plan = chain.chain(image, base.start, starts)
            if step.kind not in PIP and step.kind != "add_local":
                python = await self._python(key, tuple(layers), step.seen)
            if step.kind == "add_python":
                key, layers = await self._with_bytecode(key, layers, python, on_line)
        if python is not None:
            pythons.fits(python, plan.python_version)
        return Description(image_id=image.id, layers=tuple(layers), python=python, start=plan.start)

    async def _taken(self, image: ImageSpec, asked: _Asked) -> Description | None:
        """The image from a registry; None where it has to be built. Raises `ImageBuildError` where nothing is built."""
        if self._share is not None:
            manifest_of = self._settings.manifest_of
            manifest = None if manifest_of is None else await manifest_of(image.id)
            with _timing(asked.timed, "pull", image.id):
                taken = await self._share.take(image.id, asked.on_line, manifest)
            if taken is not None:
                return taken
        if not self._settings.builds:
            raise ImageLost(
                f"image {image.id} is not on this machine, which builds none, and a builder was asked for it",
                fix="If it stays so: agents get images from SQUALL_BUILDER_REGISTRY, or share the builder's folder.",
            )
        return None

    async def _with_bytecode(
        self, key: str, layers: list[str], python: Python | None, on_line: OnLine
    ) -> tuple[str, list[str]]:
        """Layers of which the last is the byte-code of what the interpreter brings, if it could be made; its key."""
        if python is None or not layers:
            return key, layers
        above = base_bytecode.key_above(key)
        async with self._making(above) as staging:
            if staging is not None:
                on_line(base_bytecode.TITLE)
                room = Room(tuple(map(self.folder.layer, layers)), staging, self._settings.rules, self._settings.limits)
                with self.folder.young(layers):
                    if not await base_bytecode.make(room, python, on_line):
                        return key, layers
                    await asyncio.to_thread(room.changes.mkdir, parents=True, exist_ok=True)
                    about = {"title": base_bytecode.TITLE, "kind": base_bytecode.KIND}
                    await to_its_end(self.folder.publish, staging, above, about)
        return above, [*layers, above]

    async def _make_layer(self, step: Step, below: _Below, staging: Path, on_line: OnLine) -> dict[str, Any]:
        """Fill `<staging>/fs`; what else is to be known of the layer."""
        more: dict[str, Any] = {}
        room = Room(tuple(map(self.folder.layer, below.layers)), staging, self._settings.rules, self._settings.limits)
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
                hidden=below.hidden,
                timeout_s=self._settings.step_timeout_s,
            )
            await making.make(on_line)
        elif step.kind == "add_python":
            await self._bases.add_python(str(step.arguments.get("version", "")), room.changes, on_line)
        elif step.kind == DOCKERFILE_COMMANDS and self._dockerfiles is not None:
            start = await self._dockerfiles.commands(step, below.layers, staging, on_line)
            more["start"] = dataclasses.asdict(start)
        else:
            folder = staging / "volumes"
            async with step_volumes.of_step(step.arguments, below.volumes, folder, on_line) as brought:
                under_way = Making(
                    step=step,
                    room=room,
                    python=below.python,
                    home=self.folder.home,
                    before=below.key,
                    fetch=self._fetch,
                    timeout_s=self._settings.step_timeout_s,
                    hidden=below.hidden,
                    volumes=brought,
                )
                await build_steps.make(under_way, on_line)
        await asyncio.to_thread(room.changes.mkdir, parents=True, exist_ok=True)
        return more

    async def _python(self, key: str, layers: tuple[str, ...], start: Configuration) -> Python | None:
        """The interpreter of a prefix; asked once."""
        name, asking = f"python:{key}", f"python-{key}"
        found = self.folder.base(name)
        if found is not None:
            return found.python
        lock = self.folder.home / "locks" / asking
        async with self._locks.setdefault(asking, asyncio.Lock()), file_lock(lock):
            found = self.folder.base(name)
            if found is None:
                staging = self.folder.staging(asking)
                try:
                    room = Room(tuple(map(self.folder.layer, layers)), staging, limits=self._settings.limits)
                    python = await pythons.find(room, {"PATH": PATH, **start.env})
                finally:
                    await to_its_end(remove, staging)
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
        if self.folder.keep(key):
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
                await to_its_end(remove, staging)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What goes with a request for an image."""

    on_line: OnLine
    secrets: Secrets
    timed: Timed
    volumes: Volumes


def _untimed(kind: str, title: str, start_ns: int, end_ns: int) -> None:
    """Nobody wants to know."""


@contextlib.contextmanager
def _timing(timed: Timed, kind: str, title: str) -> Iterator[None]:
    began = time.time_ns()
    try:
        yield
    finally:
        timed(kind, title, began, time.time_ns())


@dataclass(frozen=True, slots=True)
class _Below:
    key: str
    layers: tuple[str, ...]
    python: Python | None
    hidden: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Secrets of the step."""
    volumes: Volumes = no_volumes


def _emptied(staging: Path) -> None:
    remove(staging)
    staging.mkdir(parents=True)


async def _no_files(reference: object, folder: Path) -> None:
    raise ImageBuildError(
        "files of users cannot be had here", fix="Build the image on a builder, which has a blob store."
    )
