"""Which images and layers leave a machine. Owns pins: an image that runs is never removed.

A pin is a shared lock on a file: the kernel frees it with its holder, and every process that shares the folder sees it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from squall_images.layered import Description, LayerFolder
from squall_images.trees import remove

YOUNG_S = 600.0
"""Layers without an image are removed after this time only: an image that is being made has no description yet."""
LEFT_S = 86_400.0
"""What is made for so long is made by no process any more."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwanted:
    """Images that nothing needs any more, as far as it is known elsewhere."""

    images: Collection[str]
    since: float
    """Seconds since 1970. One that was asked for here after it stays: somebody wants it again."""


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
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            # Whoever forgot the image meanwhile has removed the file: a lock on that one is seen by nobody.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    yield
                    return


def sweep(
    folder: LayerFolder, limit_bytes: int | None, now: float, dry_run: bool = False, unwanted: Unwanted | None = None
) -> Freed:
    """Remove what is over the limit (None: there is none) or unwanted, and layers that no image needs. Blocks."""
    folder.open()
    with _alone(folder.home / "locks" / "eviction"):
        images = list(_images(folder))
        bases = [Description.of_json(path.read_text()) for path in folder.bases.glob("*.json")]
        sizes = {key: int(folder.about(key).get("bytes", 0)) for key in folder.all_layers()}
        young = {key for key in sizes if now - (folder.home / "layers" / key).stat().st_mtime < YOUNG_S}
        fixed = frozenset(young.union(*(base.layers for base in bases)))
        gone = [] if limit_bytes is None else choose(images, sizes, fixed, limit_bytes)
        if not dry_run:
            gone = [image for image in gone if _forget(folder, image)]
        if unwanted is not None:
            gone += _unneeded(folder, images, unwanted, dry_run)
        needed = fixed.union(*(image.layers for image in images if image.image_id not in gone))
        dead = tuple(sorted(set(sizes) - needed))
        if not dry_run:
            for key in dead:
                _remove(folder, key)
            _remove_left(folder.home / "staging", now)
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


def _unneeded(folder: LayerFolder, images: Sequence[Kept], unwanted: Unwanted, dry_run: bool) -> list[str]:
    found = [image for image in images if image.image_id in unwanted.images and image.used_at <= unwanted.since]
    if dry_run:
        return [image.image_id for image in found if not image.pinned]
    return [image.image_id for image in found if _forget(folder, image.image_id, unwanted.since)]


def _forget(folder: LayerFolder, image_id: str, unused_since: float | None = None) -> bool:
    """Remove the description under the image's own lock: who pins it now finds it gone, and makes it again."""
    pin, described = folder.home / "pins" / image_id, folder.images / f"{image_id}.json"
    with pin.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Again, now that nobody can hold it: it may have been made anew since it was looked at.
            if unused_since is not None and described.stat().st_mtime > unused_since:
                return False
        except (BlockingIOError, FileNotFoundError):
            return False
        described.unlink(missing_ok=True)
        pin.unlink(missing_ok=True)
    return True


def _remove(folder: LayerFolder, key: str) -> None:
    doomed = folder.home / "staging" / f"doomed-{key}-{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        (folder.home / "layers" / key).rename(doomed)  # at once for whoever looks, then in peace
        remove(doomed)


def _remove_left(staging: Path, now: float) -> None:
    """By processes that were killed, unless somebody makes the same again, which would remove it."""
    for path in staging.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if now - path.lstat().st_ctime > LEFT_S:
                remove(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
