"""Layers and images as they lie in one folder of a machine. Owns names, descriptors and publishing by rename.

    layers/<key>/fs          what the layer has, as overlayfs stores it (whiteouts are device nodes 0/0)
    layers/<key>/layer.json  title and size
    images/<id>.json         an image: keys of its layers, its interpreter, how its containers start
    bases/<name>.json        the same for bases that an operator registered, and for pulled ones

A folder below `layers` is whole or absent, also after a power failure. Nothing here decides what is built or removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from squall.errors import ImageBuildError
from squall_images import durable
from squall_images.chain import Configuration
from squall_images.trees import entries, remove

KEY_DIGITS = 32
KEEP_YOUNG_S = 120.0
"""A fraction of the age from which on layers without an image are removed (eviction.YOUNG_S)."""
OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
"""A folder that hides what is below it, for overlays mounted by the machine's root, and by that of a user namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Python:
    """The interpreter of an image; paths are those inside."""

    executable: str
    version: tuple[int, int, int]
    site_packages: str
    scripts: str
    data: str
    libc: str = ""
    """Such as "glibc 2.36"."""

    @property
    def minor(self) -> str:
        """Such as "3.11"."""
        return f"{self.version[0]}.{self.version[1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """An image without the place where it lies."""

    image_id: str
    layers: tuple[str, ...]
    """Keys, bottom first."""
    python: Python | None
    start: Configuration

    def to_json(self) -> str:
        """For a file or a registry."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def of_json(text: str | bytes) -> Description:
        """The other way. Raises `ImageBuildError` for what is no description."""
        try:
            found = json.loads(text)
            python, start = found["python"], found["start"]
            return Description(
                image_id=str(found["image_id"]),
                layers=tuple(checked_key(key) for key in found["layers"]),
                python=None if python is None else Python(**{**python, "version": tuple(python["version"])}),
                start=configuration(start),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ImageBuildError(f"the description of an image is damaged: {error!r}") from error


def configuration(found: Mapping[str, Any]) -> Configuration:
    """As it was written with `dataclasses.asdict`."""
    return Configuration(
        env=dict(found["env"]),
        workdir=found["workdir"],
        **{name: tuple(found[name]) for name in ("entrypoint", "cmd", "shell")},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayeredImage:
    """An image that is ready on this machine: mount `layers` as the lower folders of an overlay."""

    image_id: str
    layers: tuple[Path, ...]
    """Bottom first; read-only, owned by user 0 of this machine."""
    python: str = ""
    """Path of the interpreter inside; empty for an image without one."""
    python_version: str = ""
    """Such as "3.11"."""
    site_packages: str = ""
    """Path inside."""
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    """Empty: /root."""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()


def checked_key(key: Any) -> str:
    """A key that is safe as the name of a folder."""
    text = str(key)
    if len(text) != KEY_DIGITS or not all(letter in "0123456789abcdef" for letter in text):
        raise ValueError(f"{text!r} is not the key of a layer")
    return text


class LayerFolder:
    """One folder of layers; any number of processes use it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.images = home / "images"
        self.bases = home / "bases"

    def open(self) -> None:
        """Make what is missing."""
        for folder in ("layers", "images", "bases", "staging", "locks", "pins"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        for folder in ("layers", "staging"):
            # Files in images are stored as root's: one with setuid must be out of reach for users of this machine.
            (self.home / folder).chmod(0o700)

    def layer(self, key: str) -> Path:
        """The folder that goes into an overlay."""
        return self.home / "layers" / key / "fs"

    def has(self, key: str) -> bool:
        """Whether the layer is here; then all of it is."""
        return self.layer(key).is_dir()

    def keep(self, key: str) -> bool:
        """`has`; a layer that is here is young again, so that it stays until somebody has described what needs it."""
        try:
            os.utime(self.home / "layers" / key)
        except FileNotFoundError:
            return False
        return self.has(key)

    @contextlib.contextmanager
    def young(self, keys: Collection[str]) -> Iterator[None]:
        """As long as the block runs, these layers stay, also without an image that needs them."""
        loop = asyncio.get_running_loop()
        next_time: list[asyncio.TimerHandle] = []

        def again() -> None:
            for key in keys:
                self.keep(key)
            next_time[:] = [loop.call_later(KEEP_YOUNG_S, again)]

        again()
        try:
            yield
        finally:
            next_time[0].cancel()

    def staging(self, key: str) -> Path:
        """Where the layer is made; the same for every try, so that what a killed process left is removed."""
        return self.home / "staging" / key

    def publish(self, staging: Path, key: str, about: Mapping[str, Any]) -> None:
        """Let `<staging>/fs` be the layer. Blocks."""
        files = staging / "fs"
        size = normalise(files)
        whole = staging / "whole"
        whole.mkdir()
        files.rename(whole / "fs")
        (whole / "layer.json").write_text(json.dumps({**about, "key": key, "bytes": size}, sort_keys=True))
        target = self.home / "layers" / key
        if target.exists():  # without its files: a removal that was broken off
            remove(target)
        durable.publish(whole, target)

    def about(self, key: str) -> dict[str, Any]:
        """Title, kind and size."""
        try:
            found: dict[str, Any] = json.loads((self.home / "layers" / key / "layer.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def all_layers(self) -> Iterator[str]:
        """Every layer that is here."""
        for path in sorted((self.home / "layers").iterdir()):
            if (path / "fs").is_dir():
                yield path.name

    # --- images and bases ---

    def described(self, image_id: str) -> Description | None:
        """The image, if it is here with all of its layers."""
        return self._read(self.images / f"{image_id}.json")

    def base(self, name: str) -> Description | None:
        """A base by its name."""
        return self._read(self.bases / f"{_file_name(name)}.json")

    def describe(self, description: Description) -> None:
        """From now on the image is here."""
        durable.write(self.images / f"{description.image_id}.json", description.to_json())

    def register(self, name: str, description: Description) -> None:
        """Let a name mean a base."""
        durable.write(self.bases / f"{_file_name(name)}.json", description.to_json())

    def base_names(self) -> list[str]:
        """Names of the bases that are here."""
        return sorted(path.stem.replace("%2F", "/").replace("%25", "%") for path in self.bases.glob("*.json"))

    def _read(self, path: Path) -> Description | None:
        try:
            found = Description.of_json(path.read_text())
        except FileNotFoundError:
            return None
        return found if all(self.has(key) for key in found.layers) else None

    def image_ids(self) -> list[str]:
        """Images that are here, those used last first."""
        found = []
        with os.scandir(self.images) as entries:
            for entry in entries:
                if entry.name.startswith("im-") and entry.name.endswith(".json"):
                    with contextlib.suppress(FileNotFoundError):
                        found.append((-entry.stat().st_mtime, entry.name.removesuffix(".json")))
        return [image for _, image in sorted(found)]

    def used(self, image_id: str) -> None:
        """Note that somebody asked for it: what was asked for last is removed last."""
        try:
            os.utime(self.images / f"{image_id}.json")
        except FileNotFoundError:
            pass

    def ready(self, found: Description) -> LayeredImage:
        """The image as containers need it."""
        python = found.python
        return LayeredImage(
            image_id=found.image_id,
            layers=tuple(self.layer(key) for key in found.layers),
            python="" if python is None else python.executable,
            python_version="" if python is None else python.minor,
            site_packages="" if python is None else python.site_packages,
            env=found.start.env,
            workdir=found.start.workdir,
            entrypoint=found.start.entrypoint,
            cmd=found.start.cmd,
        )


def _file_name(name: str) -> str:
    return name.replace("%", "%25").replace("/", "%2F")


def normalise(files: Path) -> int:
    """Make a layer what it has to be on every machine; returns its bytes.

    No devices but whiteouts (a container must not bring its own), folders that hide marked for both kinds of mounts,
    no other marks of the overlay that it was written by."""
    size = 0
    files.chmod(0o755)
    for path in entries(files):
        found = os.lstat(path)
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFREG:
            size += found.st_blocks * 512 if found.st_nlink == 1 else found.st_size
        elif kind == stat.S_IFDIR:
            _marks(path)
        elif kind in (stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFIFO) or (kind == stat.S_IFCHR and found.st_rdev):
            os.unlink(path)
    _unmark(str(files))
    return size


def _marks(path: str) -> None:
    opaque = any(_mark(path, name) == b"y" for name in OPAQUE)
    _unmark(path)
    if opaque:
        hide(path)


def _mark(path: str, name: str) -> bytes:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return b""


def _unmark(path: str) -> None:
    for name in os.listxattr(path, follow_symlinks=False):
        if name.startswith(("trusted.overlay.", "user.overlay.")):
            os.removexattr(path, name, follow_symlinks=False)


def hide(path: str) -> None:
    """Let a folder hide what lies below it in other layers."""
    for name in OPAQUE:
        os.setxattr(path, name, b"y", follow_symlinks=False)


def whiteout(path: Path) -> None:
    """Let a name be gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(path):
        os.mknod(path, stat.S_IFCHR, 0)
