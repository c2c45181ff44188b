"""Bases of images: registered by an operator, taken from a registry, or nothing at all."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from squall.errors import ImageBuildError
from squall.spec import ImageStep, digest, official_python
from squall_images.build_limits import LOOK_S, LOOKS_SHARE, Disk
from squall_images.build_room import OnLine
from squall_images.chain import DEBIAN_SLIM, FROM_DOCKERFILE, FROM_REGISTRY, FROM_SCRATCH, Configuration
from squall_images.keys import stands_in
from squall_images.layered import KEY_DIGITS, Description, LayerFolder

TAR_TIMEOUT_S = 1800
LARGER = "The operator may allow more with SQUALL_BUILDER_STEP_DISK_MIB."
_OWN_NAMES = re.compile(r"oci:.*|(python|docker):[0-9a-f]{32}", re.DOTALL)
"""Those that nobody registered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whose:
    """On whose behalf an image is pulled."""

    operator: bool = False
    """He has named it himself."""
    login: str = field(default="", repr=False)
    """Base64 of the user's own `user:password` for its registry."""
    scope: str = ""
    """Whose pulls with credentials of their own these are: what they got is nobody else's."""


class Pull(Protocol):
    """Takes an image of a registry over, layer by layer."""

    async def __call__(self, tag: str, fresh: bool, on_line: OnLine, whose: Whose) -> Description: ...


class OfHost(Protocol):
    """Makes a base of an interpreter of this machine, with or without apt."""

    async def __call__(self, version: str, on_line: OnLine, apt: bool) -> Description: ...


class Bases:
    """Finds the base that an image's first step names."""

    def __init__(
        self,
        folder: LayerFolder,
        *,
        pull: Pull | None = None,
        debian_slim: str = "",
        of_host: OfHost | None = None,
        dockerfile: Callable[[ImageStep, OnLine], Awaitable[Description]] | None = None,
        stand_in: bool = False,
    ) -> None:
        self._folder = folder
        self._pull = pull
        self._of_host = of_host
        """For `debian_slim` where no base is registered and no registry set; None: that is refused."""
        self._dockerfile = dockerfile
        """Makes what a Dockerfile says; None without an engine."""
        self._stand_in = stand_in
        """Whether the base of `debian_slim` takes the place of official Python images: no registry has them."""
        self._debian_slim = debian_slim
        """Name in a registry, `{python}` in it for the version; empty = only registered ones."""

    async def find(self, step: ImageStep, on_line: OnLine, whose: Whose, *, apt: bool = False) -> Description:
        """The base; `apt`: its image has steps that need it, for bases of this machine. Raises `ImageBuildError` saying
        how to get one."""
        arguments = step.arguments
        if step.kind == FROM_SCRATCH:
            return Description(image_id="scratch", layers=(), python=None, start=Configuration())
        if step.kind == DEBIAN_SLIM:
            return await self._debian(str(arguments.get("version", "")), bool(arguments.get("forced")), on_line, apt)
        if step.kind == FROM_REGISTRY:
            tag = str(arguments.get("tag", ""))
            # Bases that were pulled are found by where they are, and by who may have them.
            found = None if _OWN_NAMES.fullmatch(tag) else self._folder.base(tag)
            if found is not None:
                return found
            if self._stand_in and (version := official_python(step)):
                on_line(stands_in(step))
                return await self._debian(version, False, on_line, apt)
            return await self._pulled(tag, bool(arguments.get("forced")), on_line, whose)
        if step.kind == FROM_DOCKERFILE and self._dockerfile is not None:
            return await self._dockerfile(step, on_line)
        raise needs_engine(step.kind)

    async def _debian(self, version: str, fresh: bool, on_line: OnLine, apt: bool) -> Description:
        minor = ".".join(version.split(".")[:2])
        for name in dict.fromkeys((f"{DEBIAN_SLIM}:{version}", f"{DEBIAN_SLIM}:{minor}")):
            found = self._folder.base(name)
            if found is not None and (not apt or self._of_host is None or self._has_apt(found)):
                return found
        if self._debian_slim:
            name = self._debian_slim.replace("{python}", version)
            return await self._pulled(name, fresh, on_line, Whose(operator=True))
        if self._of_host is not None:
            return await self._of_host(version, on_line, apt)
        known = [name for name in self._folder.base_names() if name.startswith(f"{DEBIAN_SLIM}:")]
        raise ImageBuildError(
            f"there is no base for debian_slim with Python {version} (registered: {', '.join(known) or 'none'})",
            fix="Set SQUALL_BUILDER_DEBIAN_SLIM to its name in your registry, such as `HOST/python:{python}-slim`, or "
            f"register one on the builder: `squall-images --dir {self._folder.home} base add {DEBIAN_SLIM}:{minor} "
            "ROOT.tar`. To try things, `base host` instead of `base add` makes one of that machine's CPython.",
        )

    def _has_apt(self, base: Description) -> bool:
        return any((self._folder.layer(key) / "usr/bin/apt-get").exists() for key in base.layers)

    async def _pulled(self, tag: str, fresh: bool, on_line: OnLine, whose: Whose) -> Description:
        if self._pull is None:
            known = ", ".join(self._folder.base_names()) or "none"
            raise ImageBuildError(
                f"there is no base {tag!r} here (registered: {known}), and no registry is set",
                fix="Set SQUALL_BUILDER_REGISTRY to a registry, or register a base: `squall-images base add NAME TAR`.",
            )
        return await self._pull(tag, fresh, on_line, whose)

    async def add_python(self, version: str, changes: Path, on_line: OnLine) -> None:
        """Fill a layer with the interpreter of the base for that version."""
        base = await self._debian(version, False, on_line, False)
        if base.python is None:
            raise ImageBuildError(f"the base for Python {version} has no Python", fix="Register another one.")
        prefix = base.python.data
        if prefix in ("/", "/usr"):
            raise ImageBuildError(
                f"the Python {version} of the base is a part of its Debian, and cannot be added to another image",
                fix="Register a base whose Python lies in a folder of its own, such as /usr/local.",
            )
        layers = [self._folder.layer(key) for key in base.layers]
        await asyncio.to_thread(_take_folder, layers, prefix, changes)


def _take_folder(layers: list[Path], prefix: str, changes: Path) -> None:
    found = False
    for layer in layers:
        source = layer / prefix.lstrip("/")
        if source.is_dir():
            target = changes / prefix.lstrip("/")
            shutil.copytree(source, target, symlinks=True, copy_function=os.link, dirs_exist_ok=True)
            found = True
    if not found:
        raise ImageBuildError(f"the base has no folder {prefix}")


def register(folder: LayerFolder, name: str, source: Path, start: Configuration) -> Description:
    """Make a base of a folder or a tar (also compressed). Blocks. Raises `ImageBuildError` for a bad one."""
    folder.open()
    staging = folder.staging(f"base-{digest(name)[:KEY_DIGITS]}")
    shutil.rmtree(staging, ignore_errors=True)
    files = staging / "fs"
    files.mkdir(parents=True)
    try:
        if source.is_dir():
            shutil.copytree(source, files, symlinks=True, dirs_exist_ok=True, ignore=_special)
        else:
            extract(source, files)
        if not any((files / name).exists() for name in ("bin", "usr", "etc")):
            raise ImageBuildError(f"{source} is no root file system: it has none of bin, usr and etc")
        # By what it has, not by its name: the same root registered again rebuilds nothing.
        key = _contents(files)[:KEY_DIGITS]
        if not folder.has(key):
            folder.publish(staging, key, {"title": f"base {name}", "kind": "base"})
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    description = Description(image_id=name, layers=(key,), python=None, start=start)
    folder.register(name, description)
    return description


def _special(folder: str, names: list[str]) -> list[str]:
    """Devices, pipes and sockets: nothing of a layer, and some never end."""
    kept = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
    return [name for name in names if stat.S_IFMT(os.lstat(os.path.join(folder, name)).st_mode) not in kept]


def extract(archive: Path, target: Path, limit_mib: int = 0) -> None:
    """Extract a tar. Raises `ImageBuildError` for a damaged one, for members that lead out of the folder, and for one
    that has more than the limit (0 = none)."""
    command = ["tar", "--extract", "--file", str(archive), "--directory", str(target), "--numeric-owner"]
    command += [
        "--delay-directory-restore",
        "--xattrs",
        "--xattrs-include=user.*",
        "--xattrs-include=security.capability",
    ]
    try:
        code, told = _watched(command, Disk(limit_mib, target), archive.name)
    except FileNotFoundError:
        raise ImageBuildError("the program tar is not on this machine", fix="Install it.") from None
    if code:
        last = "\n".join(told.strip().splitlines()[-5:])
        if "No space left on device" in last:
            raise OSError(28, f"No space left on device for {target}")
        raise ImageBuildError(f"{archive.name} is no archive that a layer can be made of: {last}")


def _watched(command: list[str], disk: Disk, name: str) -> tuple[int, str]:
    """Run it while what it writes is within its limit."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as tar:
        looked_s, until, told = 0.0, time.monotonic() + TAR_TIMEOUT_S, ""
        try:
            while True:
                try:
                    _, told = tar.communicate(timeout=max(LOOK_S, LOOKS_SHARE * looked_s))
                    break
                except subprocess.TimeoutExpired:
                    began = time.monotonic()
                    if began > until or disk.exceeded():
                        break
                    looked_s = time.monotonic() - began
        finally:
            if (code := tar.poll()) is None:
                tar.kill()
    if code is None or disk.exceeded():
        raise ImageBuildError(f"{name} unpacks to more than {disk.limit_mib} MiB, or takes too long", fix=LARGER)
    return code, told


def _contents(files: Path) -> str:
    import hashlib

    seen = hashlib.sha256()
    for here, folders, names in os.walk(files):
        folders.sort()
        for name in sorted([*names, *(folder for folder in folders if os.path.islink(f"{here}/{folder}"))]):
            path = f"{here}/{name}"
            found = os.lstat(path)
            seen.update(f"{os.path.relpath(path, files)}\0{found.st_mode:o}\0{found.st_uid}\0{found.st_gid}\0".encode())
            if os.path.islink(path):
                seen.update(os.readlink(path).encode("utf-8", "surrogateescape"))
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    seen.update(hashlib.file_digest(file, "sha256").digest())
    return seen.hexdigest()


def needs_engine(kind: str) -> ImageBuildError:
    """What Dockerfiles need is not here."""
    return ImageBuildError(
        f"{kind} needs a container engine, and this builder has none",
        fix="Set SQUALL_BUILDER_DOCKER_HOST to that of a Docker engine. Or write it as from_registry, apt_install, "
        "run_commands, env and add_local_*(copy=True); or build it elsewhere, "
        "push it to the builder's registry (SQUALL_BUILDER_REGISTRY) and use from_registry.",
        step=kind,
    )
