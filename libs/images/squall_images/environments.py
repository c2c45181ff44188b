"""Makes images as uv environments in one folder, shared by everything that uses that folder.

Owns that folder: environments under the key of their chain of steps (hard links from uv's cache, which lies there too),
published by rename, so that one is there whole or not at all. Equal prefixes are made once; concurrent requests for one
key wait for the first, also across processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from squall.spec import ImageSpec, digest
from squall_images import bytecode, caches, durable, interpreters, machine_packages, uv
from squall_images.interpreters import Interpreter
from squall_images.keys import ImagePlan, Layer, plan
from squall_images.locks import file_lock, to_its_end

_DONE = ".squall-complete"

OnLine = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """An image that is ready on this machine."""

    image_id: str
    prefix: Path
    python: Path
    site_packages: Path
    interpreter: Path
    """The interpreter that it was made from; outside of `prefix`."""
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    """Folder that containers start in; empty for /root."""


class EnvironmentStore:
    """One per process; any number of processes per folder."""

    def __init__(self, home: Path, program: Path | None = None) -> None:
        self._home = home
        self._uv = program or uv.program()
        self._locks: dict[str, asyncio.Lock] = {}
        self._found: list[Interpreter] | None = None
        self._finding = asyncio.Lock()

    async def interpreters(self) -> list[Interpreter]:
        """Every interpreter that environments can be made from; looked for once."""
        async with self._finding:
            if self._found is None:
                self._found = await interpreters.installed()
            return self._found

    async def ensure(self, image: ImageSpec, on_line: OnLine) -> Environment:
        """The image's environment, made if needed. Raises `ImageBuildError` with the step, its output and exit code."""
        steps = plan(image)
        python = interpreters.find(steps.python_version, await self.interpreters())
        machine_packages.check(steps.machine_packages)
        prefix = self._prefix(python, steps.key)
        if not (prefix / _DONE).exists():
            with caches.used(self._home, caches.UV), caches.used(self._home, caches.BYTECODE):
                await self._make_chain(steps, python, on_line)
        return _environment(steps, prefix, python)

    async def _make_chain(self, steps: ImagePlan, python: Interpreter, on_line: OnLine) -> None:
        before = self._prefix(python, steps.base_key)
        async with self._making(before) as staging:
            if staging is not None:
                await self._make_base(staging, python, on_line)
                await to_its_end(_publish, staging, before)
        for layer in steps.layers:
            prefix = self._prefix(python, layer.key)
            async with self._making(prefix) as staging:
                if staging is not None:
                    await self._make_layer(layer, before, staging, python, on_line)
                    await to_its_end(_publish, staging, prefix)
            before = prefix

    async def _make_base(self, staging: Path, python: Interpreter, on_line: OnLine) -> None:
        await self._run(
            "base",
            ["venv", "--quiet", "--relocatable", "--no-project", "--python", str(python.path), str(staging)],
            on_line,
            {},
        )

    async def _make_layer(
        self, layer: Layer, before: Path, staging: Path, python: Interpreter, on_line: OnLine
    ) -> None:
        on_line(layer.title)
        await to_its_end(_clone, before, staging)
        command = ["pip", "install", "--python", str(staging / "bin" / "python"), "--link-mode", "hardlink"]
        listed = staging.with_name(f"{staging.name}.requirements.txt")
        try:
            if layer.requirements:
                listed.write_text(layer.requirements)
                command += ["--requirements", str(listed)]
            await self._run(layer.title, [*command, *layer.options, "--", *layer.packages], on_line, layer.env)
        finally:
            listed.unlink(missing_ok=True)
        tag = f"cpython-{python.version[0]}{python.version[1]}"
        packages = _site_packages(staging, python)
        await to_its_end(bytecode.compile_new, packages, staging / "bin" / "python", tag, self._home / "bytecode")

    async def _run(self, step: str, arguments: list[str], on_line: OnLine, env: Mapping[str, str]) -> None:
        await uv.run(step, [str(self._uv), *arguments], self._home / "uv-cache", on_line, env)

    @contextlib.asynccontextmanager
    async def _making(self, prefix: Path) -> AsyncIterator[Path | None]:
        """The right to make one environment, with a staging folder; None when it is there by the time we have it."""
        async with self._locks.setdefault(prefix.name, asyncio.Lock()), file_lock(self._home / "locks" / prefix.name):
            if (prefix / _DONE).exists():
                yield None
                return
            # One name for all tries: what a killed process left is removed by the next.
            staging = prefix.parent / f".new-{prefix.name}"
            try:
                await to_its_end(_emptied, staging)
                yield staging
            finally:
                await to_its_end(shutil.rmtree, staging, True)

    def _prefix(self, python: Interpreter, key: str) -> Path:
        # The key of the steps is the same everywhere; the environment also depends on the interpreter it links to.
        name = digest({"key": key, "python": str(python.path), "version": python.full, "platform": sys.platform})
        return self._home / "envs" / name[:32]


def _environment(steps: ImagePlan, prefix: Path, python: Interpreter) -> Environment:
    return Environment(
        image_id=steps.image_id,
        prefix=prefix,
        python=prefix / "bin" / "python",
        site_packages=_site_packages(prefix, python),
        interpreter=python.path,
        env=steps.env,
        workdir=steps.workdir,
    )


def _site_packages(prefix: Path, python: Interpreter) -> Path:
    return prefix / "lib" / f"python{python.minor}" / "site-packages"


def _clone(before: Path, staging: Path) -> None:
    """The same tree by hard links. Installers replace files, they do not write into them."""
    shutil.copytree(before, staging, symlinks=True, copy_function=_link, dirs_exist_ok=True)
    (staging / _DONE).unlink()


def _link(source: str, target: str) -> None:
    if os.path.basename(source) == "pyvenv.cfg":
        shutil.copy2(source, target)
    else:
        os.link(source, target)


def _emptied(staging: Path) -> None:
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)


def _publish(staging: Path, prefix: Path) -> None:
    (staging / _DONE).touch()
    staging.chmod(0o755)
    if prefix.exists():  # without the mark: not by us
        shutil.rmtree(prefix)
    durable.publish(staging, prefix)
