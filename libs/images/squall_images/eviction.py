"""Which images and layers leave a machine. Owns pins: an image that runs is never removed.

A pin is a shared lock on a file: the kernel frees it with its holder, and every process that shares the folder sees it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from squall_images.layered import Description, LayerFolder

YOUNG_S = 600.0
"""Layers without an image are removed after this time only: an image that is being made has no description yet."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An image as eviction sees it."""

    image_id: str
    layers: tuple[str, ...]
    used_at: float
    pinned: bool


@dataclass(frozen=True, slots=True)
class Freed:
    """What was removed, or would be."""

    images: tuple[str, ...]
    layers: tuple[str, ...]
    bytes: int
    kept_bytes: int


def choose(images: Sequence[Kept], sizes: dict[str, int], fixed: frozenset[str], limit_bytes: int) -> list[str]:
    """Ids of images to remove, least recently used first, until what is left fits. Pure.

    `sizes`: of every layer; `fixed`: layers of bases and young ones, which stay."""
    gone: list[str] = []
    left = sorted(images, key=lambda image: image.used_at)

    def total(kept: Sequence[Kept]) -> int:
        needed = fixed.union(*(image.layers for image in kept))
        return sum(size for key, size in sizes.items() if key in needed)

    for image in list(left):
        if total(left) <= limit_bytes:
            break
        if not image.pinned:
            left.remove(image)
            gone.append(image.image_id)
    return gone


@contextlib.contextmanager
def pinned(folder: LayerFolder, image_id: str) -> Iterator[None]:
    """As long as the block runs, the image stays."""
    path = folder.home / "pins" / image_id
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def sweep(folder: LayerFolder, limit_bytes: int, now: float, dry_run: bool = False) -> Freed:
    """Remove what is over the limit, and layers that no image needs. Blocks."""
    folder.open()
    with _alone(folder.home / "locks" / "eviction"):
        images = list(_images(folder))
        bases = [Description.of_json(path.read_text()) for path in folder.bases.glob("*.json")]
        sizes = {key: int(folder.about(key).get("bytes", 0)) for key in folder.all_layers()}
        young = {key for key in sizes if now - (folder.home / "layers" / key).stat().st_mtime < YOUNG_S}
        fixed = frozenset(young.union(*(base.layers for base in bases)))
        gone = choose(images, sizes, fixed, limit_bytes)
        if not dry_run:
            gone = [image for image in gone if _forget(folder, image)]
        needed = fixed.union(*(image.layers for image in images if image.image_id not in gone))
        dead = tuple(sorted(set(sizes) - needed))
        if not dry_run:
            for key in dead:
                _remove(folder, key)
    freed = sum(sizes[key] for key in dead)
    return Freed(tuple(gone), dead, freed, sum(sizes.values()) - freed)


def _images(folder: LayerFolder) -> Iterator[Kept]:
    for path in folder.images.glob("im-*.json"):
        with contextlib.suppress(FileNotFoundError):
            found = Description.of_json(path.read_text())
            held = _held(folder.home / "pins" / found.image_id)
            yield Kept(found.image_id, found.layers, path.stat().st_mtime, held)


def _held(pin: Path) -> bool:
    try:
        with pin.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


def _forget(folder: LayerFolder, image_id: str) -> bool:
    """Remove the description under the image's own lock: who pins it now finds it gone, and makes it again."""
    pin = folder.home / "pins" / image_id
    with pin.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        (folder.images / f"{image_id}.json").unlink(missing_ok=True)
        pin.unlink(missing_ok=True)
    return True


def _remove(folder: LayerFolder, key: str) -> None:
    doomed = folder.home / "staging" / f"doomed-{key}-{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        (folder.home / "layers" / key).rename(doomed)  # at once for whoever looks, then in peace
        shutil.rmtree(doomed, ignore_errors=True)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
