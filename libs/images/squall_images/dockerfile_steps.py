"""What Dockerfiles make, as layers: the engine builds, its layers are taken over one by one.

Owns what the engine is told of the image so far, and how several layers of the engine become the one of a step.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from squall.errors import ImageBuildError
from squall.spec import ImageStep, digest, identity, to_wire
from squall_images.bases import extract
from squall_images.build_room import OnLine
from squall_images.build_steps import Fetch
from squall_images.chain import HOME, Configuration, Step
from squall_images.distribution import configuration_of, to_overlay
from squall_images.docker_engine import DockerEngine, Inspected, write_context
from squall_images.layered import KEY_DIGITS, OPAQUE, Description, LayerFolder, hide, whiteout
from squall_images.locks import file_lock, to_its_end
from squall_images.trees import remove

_SHOW = 'mount -t overlay overlay -o "ro,lowerdir=$1" "$2" && exec tar --create --numeric-owner --directory "$2" .'
T = TypeVar("T")


class Dockerfiles:
    """Builds of one folder of layers by one engine."""

    def __init__(self, folder: LayerFolder, host: str, network: str, fetch: Fetch, timeout_s: float) -> None:
        self._folder = folder
        self._host = host
        self._network = network
        self._fetch = fetch
        self._timeout_s = timeout_s
        # Of images so far, at the engine, whose tags are keys of layers; others may use the engine, too.
        self._repository = f"squall-build-{digest([os.uname().nodename, str(folder.home)])[:12]}"

    async def base(self, step: ImageStep, on_line: OnLine) -> Description:
        """What a whole Dockerfile makes. Built once; the engine's cache has its parts."""
        name = f"docker:{digest(to_wire(identity(step)))[:KEY_DIGITS]}"
        async with file_lock(self._folder.home / "locks" / name.replace(":", "-")):
            known = self._folder.base(name)
            if known is not None:
                return known
            staging = self._folder.staging(name.replace(":", "-"))
            try:
                found = await self._build(str(step.arguments.get("text", "")), step.arguments, staging, on_line)
                try:
                    keys = await self._take_over(found, staging, on_line)
                finally:
                    await self._forget(found)
            finally:
                await to_its_end(remove, staging)
            start = configuration_of(found.config)
            env = {**start.env, **{str(k): str(v) for k, v in (step.arguments.get("env") or {}).items()}}
            made = Description(image_id=name, layers=keys, python=None, start=_with_env(start, env))
            self._folder.register(name, made)
        return made

    async def commands(self, step: Step, below: Sequence[str], staging: Path, on_line: OnLine) -> Configuration:
        """Fill `<staging>/fs` with what the lines of a Dockerfile make of the layers below; how it starts then."""
        name = f"{self._repository}:{below[-1] if below else 'scratch'}"
        if below:
            await self._run(lambda engine: self._load(engine, below, staging, name))
        head = [f"FROM {name if below else 'scratch'}", *_head(step.seen)]
        text = "\n".join([*head, str(step.arguments.get("text", ""))])
        found = await self._build(text, step.arguments, staging, on_line)
        new = found.layers[1:] if below else found.layers
        files = staging / "fs"
        files.mkdir(exist_ok=True)
        try:
            saved = await self._run(lambda engine: engine.save(found.image_id, new, staging)) if new else {}
        finally:
            await self._forget(found)
        for number, layer in enumerate(new):
            await to_its_end(_lay_on, saved[layer], staging / f"layer-{number}", files)
        return configuration_of(found.config)

    async def sweep(self) -> None:
        """Remove images so far, at the engine, whose layers have left."""

        def sweep(engine: DockerEngine) -> None:
            for tag in engine.tags(self._repository):
                if not self._folder.has(tag):
                    engine.remove(f"{self._repository}:{tag}")

        await self._run(sweep)

    async def _forget(self, found: Inspected) -> None:
        """The engine's cache keeps what it was made of."""
        if not found.named:  # a Dockerfile that adds nothing makes its base
            await self._run(lambda engine: engine.remove(found.image_id))

    async def _build(self, text: str, arguments: Mapping[str, Any], staging: Path, on_line: OnLine) -> Inspected:
        await asyncio.to_thread(staging.mkdir, parents=True, exist_ok=True)
        files = None
        if isinstance(reference := arguments.get("context"), Mapping):
            files = staging / "context"
            await self._fetch(reference, files)
        archive = staging / "context.tar"
        await to_its_end(write_context, files, text, archive)
        given = {str(name): str(value) for name, value in (arguments.get("build_args") or {}).items()}
        loop = asyncio.get_running_loop()

        def on_text(line: str) -> None:
            loop.call_soon_threadsafe(on_line, line)

        image = await self._run(lambda engine: engine.build(text, archive, given, on_text))
        found = await self._run(lambda engine: engine.inspect(image))
        if found is None:
            raise ImageBuildError("the container engine has lost the image that it built")
        return found

    async def _take_over(self, found: Inspected, staging: Path, on_line: OnLine) -> tuple[str, ...]:
        keys: list[str] = []
        for layer in found.layers:
            below = keys[-1] if keys else ""
            keys.append(digest({"below": below, "oci": layer})[:KEY_DIGITS])
        missing = {key: layer for key, layer in zip(keys, found.layers, strict=True) if not self._folder.keep(key)}
        if missing:
            wanted = list(missing.values())
            saved = await self._run(lambda engine: engine.save(found.image_id, wanted, staging))
            for key, layer in missing.items():
                await to_its_end(self._publish, saved[layer], key)
                on_line(f"layer {layer[7:19]}: {self._folder.about(key).get('bytes', 0) >> 20} MiB")
        return tuple(keys)

    def _publish(self, archive: Path, key: str) -> None:
        staging = self._folder.staging(f"{key}-docker")
        remove(staging)
        try:
            (staging / "fs").mkdir(parents=True)
            extract(archive, staging / "fs")
            to_overlay(staging / "fs")
            if not self._folder.has(key):
                self._folder.publish(staging, key, {"title": "Dockerfile", "kind": "docker"})
        finally:
            remove(staging)

    def _load(self, engine: DockerEngine, below: Sequence[str], staging: Path, name: str) -> None:
        """Give the engine the image so far, unless it has it."""
        if engine.inspect(name) is not None:
            return
        root, nothing = staging / "root", staging / "nothing"
        for folder in (root, nothing):
            folder.mkdir(parents=True, exist_ok=True)
        lowers = ":".join([*(str(self._folder.layer(key)) for key in reversed(below)), str(nothing)])
        # In a mount namespace of its own: a killed builder leaves no mount.
        command = ["unshare", "--mount", "sh", "-c", _SHOW, "show", lowers, str(root)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as packing:
            assert packing.stdout is not None
            try:
                engine.load_root(packing.stdout, *name.split(":"))
            finally:
                packing.stdout.close()
        if packing.returncode:
            engine.remove(name)
            raise OSError(packing.returncode, "the layers so far could not be read")

    async def _run(self, work: Callable[[DockerEngine], T]) -> T:
        """With an engine of its own, in a thread; whoever gives up ends it."""
        engine = DockerEngine(self._host, self._network)
        running = asyncio.get_running_loop().run_in_executor(None, work, engine)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(running)
        except (asyncio.CancelledError, TimeoutError) as ended:
            engine.abort()
            await asyncio.wait([running])
            running.exception()
            if isinstance(ended, TimeoutError):
                raise ImageBuildError(f"the step took more than {self._timeout_s:g} s") from ended
            raise


def _with_env(start: Configuration, env: Mapping[str, str]) -> Configuration:
    return replace(start, env=dict(env))


def _head(seen: Configuration) -> list[str]:
    """The configuration so far, as lines of a Dockerfile."""
    lines = []
    for name, value in seen.env.items():
        if "\n" in value:
            raise ImageBuildError(f"the variable {name} has several lines, which Dockerfiles cannot have")
        quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
        lines.append(f'ENV {name}="{quoted}"')
    lines += [f"WORKDIR {seen.workdir or HOME}", f"SHELL {json.dumps(list(seen.shell))}"]
    lines += [f"ENTRYPOINT {json.dumps(list(seen.entrypoint))}"] if seen.entrypoint else []
    lines += [f"CMD {json.dumps(list(seen.cmd))}"] if seen.cmd else []
    return lines


def _lay_on(archive: Path, scratch: Path, files: Path) -> None:
    """One more layer of the engine on what is there already, as one layer."""
    scratch.mkdir()
    extract(archive, scratch)  # it stays: two lines may have made the same layer, such as an empty one
    to_overlay(scratch)
    _merge(scratch, files)
    shutil.rmtree(scratch)


def _merge(upper: Path, lower: Path) -> None:
    """Move a layer onto another: names that it hides are gone below, and hidden still."""
    for entry in sorted(os.scandir(upper), key=lambda found: found.name):
        above, below = Path(entry.path), lower / entry.name
        if entry.is_dir(follow_symlinks=False):
            opaque = _is_opaque(above)
            hidden = os.path.lexists(below) and _is_whiteout(below)
            if opaque or (below.is_symlink() or (os.path.lexists(below) and not below.is_dir())):
                _remove(below)
            if not os.path.lexists(below):
                above.rename(below)
                if hidden:
                    hide(str(below))  # what a name hid before it was made anew, it hides still
                continue
            _merge(above, below)
            found = above.lstat()
            os.chown(below, found.st_uid, found.st_gid)
            shutil.copystat(above, below)
        else:
            hidden = _is_whiteout(above)
            _remove(below)
            whiteout(below) if hidden else above.rename(below)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_opaque(path: Path) -> bool:
    return OPAQUE[0] in os.listxattr(path, follow_symlinks=False)


def _is_whiteout(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0
