"""What containers need of the host to use a device, from CDI files (Container Device Interface). Owns nothing.

NVIDIA's toolkit writes such a file: `nvidia-ctk cdi generate --device-name-strategy=uuid`. It says, for each device,
which device nodes, libraries and variables a container is given. Of its hooks those are done here that container images
need, in the container's own root; a hook that is not known is an error, because nobody could say what lacks without it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

KIND = "nvidia.com/gpu"
DIRECTORIES = "/etc/cdi:/var/run/cdi"
FIX = "Write it anew on that machine: nvidia-ctk cdi generate --device-name-strategy=uuid --output=/etc/cdi/nvidia.yaml"
LINKS, LIBRARIES = "create-symlinks", "update-ldcache"
WITHOUT_EFFECT = frozenset({"chmod", "disable-device-node-modification", "enable-cuda-compat"})
"""Hooks that sandboxes do not need: modes of folders and of the driver's parameters, which nobody in there could use to
make a device; and libraries of images that are newer than the driver, which they find by their own path."""
MOST_BYTES = 8 << 20


class CdiError(Exception):
    """A device cannot be given to containers; the message says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A file or folder of the host."""

    source: str
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What a container with these devices gets besides."""

    nodes: tuple[Mount, ...] = ()
    """Device nodes."""
    mounts: tuple[Mount, ...] = ()
    env: Mapping[str, str]
    links: tuple[tuple[str, str], ...] = ()
    """Symbolic links: where, and what they say."""
    libraries: tuple[str, ...] = ()
    """Folders whose libraries programs have to find."""


NO_EDITS = Edits(env={})


def edits(directories: str, uuids: Sequence[str]) -> Edits:
    """For these devices and no others. `directories`: with colons between; the last file that names a device counts.
    Reads files; raises `CdiError`."""
    if not uuids:
        return NO_EDITS
    found: dict[str, tuple[Any, Any]] = {}
    for path in _files(directories):
        for name, common, own in _devices(path):
            found[name] = (common, own)
    lacking = [uuid for uuid in uuids if uuid not in found]
    if lacking:
        raise CdiError(f"no CDI file in {directories} has the device {KIND}={lacking[0]}. {FIX}")
    parts: list[Mapping[str, Any]] = []
    for uuid in uuids:
        for part in found[uuid]:
            if part not in parts:  # what all devices of a file have in common
                parts.append(part)
    try:
        return _joined(parts)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CdiError(f"the CDI file of {uuids[0]} cannot be understood: {error!r}. {FIX}") from error


def _files(directories: str) -> Iterator[Path]:
    for directory in filter(None, directories.split(":")):
        folder = Path(directory)
        if folder.is_dir():
            yield from sorted(path for path in folder.iterdir() if path.suffix in (".json", ".yaml", ".yml"))


def _devices(path: Path) -> Iterator[tuple[str, Any, Any]]:
    """Name, what all devices of the file need, and what this one needs."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        if found["kind"] != KIND:
            return
        for device in found["devices"]:
            yield str(device["name"]), found.get("containerEdits") or {}, device.get("containerEdits") or {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise CdiError(f"{path} is no CDI file: {error}. {FIX}") from error


def _joined(parts: Sequence[Mapping[str, Any]]) -> Edits:
    nodes: dict[str, Mount] = {}
    mounts: dict[str, Mount] = {}
    env: dict[str, str] = {}
    links: dict[str, str] = {}
    libraries: dict[str, None] = {}
    for part in parts:
        for each in part.get("deviceNodes") or ():
            node = _node(each)
            nodes[node.target] = node
        for each in part.get("mounts") or ():
            mount = _mount(each)
            mounts[mount.target] = mount
        env.update(_variable(entry) for entry in part.get("env") or ())
        for hook in part.get("hooks") or ():
            name, words = _hook(hook)
            if name == LINKS:
                links.update(_link(word) for word in _values(words, "link"))
            elif name == LIBRARIES:
                libraries.update(dict.fromkeys(_inside(word) for word in _values(words, "folder")))
    return Edits(
        nodes=tuple(nodes.values()),
        mounts=tuple(mounts.values()),
        env=env,
        links=tuple(links.items()),
        libraries=tuple(libraries),
    )


def _variable(entry: Any) -> tuple[str, str]:
    name, _, value = str(entry).partition("=")
    return name, value


def _node(found: Mapping[str, Any]) -> Mount:
    target = _inside(found["path"])
    source = str(found.get("hostPath") or target)
    try:
        status = os.stat(source)
    except OSError as error:
        raise CdiError(f"the device node {source} of a CDI file is not there: {error.strerror}. {FIX}") from error
    numbers = (os.major(status.st_rdev), os.minor(status.st_rdev))
    wanted = (int(found.get("major", numbers[0])), int(found.get("minor", numbers[1])))
    if not stat.S_ISCHR(status.st_mode) or numbers != wanted:
        raise CdiError(f"{source} is not the device that a CDI file says it is. {FIX}")
    if not f"{os.path.normpath(target)}/".startswith("/dev/"):
        raise CdiError(f"a CDI file puts a device node at {target}, outside of /dev. {FIX}")
    return Mount(source=source, target=target, writable=True)


def _mount(found: Mapping[str, Any]) -> Mount:
    source, target = str(found["hostPath"]), _inside(found["containerPath"])
    if not os.path.exists(source):
        raise CdiError(f"{source}, which a CDI file gives to containers, is not there. {FIX}")
    if f"{target}/".startswith(("/proc/", "/sys/", "/run/squall/")):
        raise CdiError(f"a CDI file mounts something at {target}, which is not the image's. {FIX}")
    return Mount(source=source, target=target, writable="rw" in (found.get("options") or ()))


def _hook(found: Mapping[str, Any]) -> tuple[str, list[str]]:
    """`nvidia-cdi-hook create-symlinks ...`, or `nvidia-ctk hook create-symlinks ...`: its name and words."""
    words = [str(word) for word in found.get("args") or ()]
    if len(words) > 1 and words[1] == "hook":
        del words[1]
    name = words[1] if len(words) > 1 else str(found.get("path"))
    if name not in {LINKS, LIBRARIES, *WITHOUT_EFFECT}:
        raise CdiError(
            f"a CDI file asks for the hook {name!r}, which sandboxes do not know. Leave it out of the file "
            "(`nvidia-ctk cdi generate --disable-hook=...`), or use a node with the process or the docker backend."
        )
    return name, words[2:]


def _values(words: Sequence[str], option: str) -> Iterator[str]:
    """`--link a --link=b`."""
    following = iter(words)
    for word in following:
        name, _, value = word.partition("=")
        if name.lstrip("-") == option:
            yield value or next(following)


def _link(word: str) -> tuple[str, str]:
    says, _, where = word.partition("::")
    return _inside(where), says


def _inside(path: Any) -> str:
    """An absolute path of the container."""
    text = os.path.normpath(str(path))
    if not text.startswith("/") or text == "/":
        raise ValueError(f"{path!r} is not an absolute path")
    return text
