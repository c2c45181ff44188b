"""Layers of this machine as an image of an engine: an archive as `docker save` makes them. Blocking: for threads.

The marks of overlayfs (a device 0:0 hides a file, an attribute hides a folder's contents) become those of image layers.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
_OPAQUE_MARKS = ("trusted.overlay.opaque", "user.overlay.opaque")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def pack(layers: Sequence[Path], name: str, labels: dict[str, str], archive: Path) -> None:
    """Write the archive of an image of these layers, bottom first."""
    parts = [archive.with_name(f"{archive.name}-{number}") for number in range(len(layers))]
    try:
        digests = [_layer(layer, part) for layer, part in zip(layers, parts, strict=True)]
        config = {
            "architecture": _ARCHITECTURES.get(os.uname().machine, os.uname().machine),
            "os": "linux",
            "created": datetime.now(UTC).isoformat(),
            "config": {"Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        }
        manifest = [
            {"Config": "config.json", "RepoTags": [name], "Layers": [f"{digest}/layer.tar" for digest in digests]}
        ]
        with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
            for path, content in (("config.json", config), ("manifest.json", manifest)):
                _add_bytes(tar, path, json.dumps(content).encode())
            for digest, part in dict(zip(digests, parts, strict=True)).items():
                tar.add(part, f"{digest}/layer.tar")
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def has(layers: Sequence[Path], path: str) -> bool:
    """Whether an image of these layers has something at an absolute path."""
    for layer in reversed(layers):
        found = layer / path.lstrip("/")
        with contextlib.suppress(OSError):
            return not _is_whiteout(os.lstat(found))
    return False


def is_link(layers: Sequence[Path], path: str) -> bool:
    """Whether an image of these layers has a link at a path below no link."""
    for layer in reversed(layers):
        with contextlib.suppress(OSError):
            return stat.S_ISLNK(os.lstat(layer / path).st_mode)
    return False


def _layer(files: Path, archive: Path) -> str:
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT, dereference=False) as tar:
        for path in _sorted(files):
            found = os.lstat(path)
            name = str(path.relative_to(files))
            if _is_whiteout(found):
                _add_bytes(tar, str(Path(name).with_name(WHITEOUT + path.name)), b"")
                continue
            tar.add(path, name, recursive=False, filter=_plain)
            if stat.S_ISDIR(found.st_mode) and _is_opaque(path):
                _add_bytes(tar, f"{name}/{OPAQUE}", b"")
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sorted(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _sorted(path)


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uname = info.gname = ""
    info.mtime = int(info.mtime)
    return info


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _is_opaque(folder: Path) -> bool:
    for name in _OPAQUE_MARKS:
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"y":
                return True
    return False


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))
