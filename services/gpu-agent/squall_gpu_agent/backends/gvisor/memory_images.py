"""Images of templates' memory, as runsc wrote them: a folder of the agent alone, of bounded size.

They hold what was in a heap, secrets included, and runsc reads them with trust: once it has been written, an image
belongs to the agent's user, no one else can open it, and slots see it read-only. A template writes its own into a
folder that nothing else is in, and has ended before it is looked at. None outlives its agent.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squall_gpu_agent.backends.payload_container import is_nearly_full, written_bytes
from squall_gpu_agent.policy.memory_images import ImageOnDisk, make_room, no_longer_wanted
from squall_gpu_agent.volumes.trees import remove

FILE = "checkpoint.img"
"""Its name is runsc's."""


class NotKept(Exception):
    """An image cannot be kept; the message says why."""


@dataclass(slots=True, kw_only=True)
class MemoryImage(ImageOnDisk):
    """One that can be restored from."""

    folder: Path
    config: Mapping[str, Any]
    """The container that it is of, in the words that runsc was given."""

    @property
    def memory(self) -> Path:
        """Folder with the file alone."""
        return self.folder / "memory"

    @property
    def above(self) -> Path:
        """What its template wrote to its own disk: a copy finds there what it has open."""
        return self.folder / "above"


class MemoryImages:
    """See the module."""

    def __init__(self, folder: Path, limit_bytes: int, monotonic: Callable[[], float]) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._monotonic = monotonic
        self._images: dict[str, MemoryImage] = {}
        self._lock = threading.Lock()
        self._made = 0

    def open(self) -> None:
        """Begin with none: what an earlier agent left is removed. Blocks."""
        remove(self._folder)
        self._folder.mkdir(parents=True, mode=0o700)

    def close(self) -> None:
        """Remove all. Blocks."""
        self._images.clear()
        remove(self._folder)

    def all(self) -> list[MemoryImage]:
        """Those that are there."""
        with self._lock:
            return list(self._images.values())

    def get(self, key: str, function: str) -> MemoryImage | None:
        """The one of this key, which is used from now on. Others of its function are superseded by it."""
        for image in self.all():
            if image.function == function:
                image.superseded = image.key != key
        found = self._images.get(key)
        if found is not None:
            found.used_at = self._monotonic()
        return found

    def hold(self, image: MemoryImage) -> Callable[[], None] | None:
        """It stays until the answer is called, which any thread may do, once; None if it has left already."""
        with self._lock:
            if self._images.get(image.key) is not image:
                return None
            image.users += 1

        def release() -> None:
            with self._lock:
                image.users -= 1
                image.used_at = self._monotonic()
                doomed = not image.users and self._images.get(image.key) is not image
            if doomed:
                remove(image.folder)

        return release

    def discard(self, image: MemoryImage) -> None:
        """It is not restored from again, and removed with the last that was. Blocks."""
        with self._lock:
            if self._images.get(image.key) is image:
                del self._images[image.key]
            used = image.users
        if not used:
            remove(image.folder)

    def sweep(self) -> int:
        """Remove those that nobody needs; how many. Blocks."""
        return self._remove(no_longer_wanted(self.all(), self._monotonic()))

    # --- making one ---

    def begin(self, user: int) -> Path:
        """A folder into which that user of the host may write, and reach by no path. Raises `NotKept`. Blocks."""
        if self._limit <= 0:
            raise NotKept("no memory snapshots are kept on this machine")
        if is_nearly_full(str(self._folder)):
            raise NotKept("the disk of its machine is nearly full")
        self._made += 1
        folder = self._folder / str(self._made)
        (folder / "memory").mkdir(parents=True, mode=0o700)
        os.chown(folder / "memory", user, user)
        return folder

    def trouble(self, folder: Path) -> str:
        """Why it must not be written any further; "" = nothing. Blocks."""
        if _size(folder / "memory" / FILE) > self._limit:
            return self._too_large()
        return "the disk of its machine is nearly full" if is_nearly_full(str(self._folder)) else ""

    def keep(
        self, folder: Path, written: Path, first_id: int, *, key: str, function: str, config: Mapping[str, Any]
    ) -> MemoryImage:
        """Take over what a template that has ended has written there, and to its disk. Raises `NotKept`. Blocks."""
        try:
            _take_over(folder / "memory", first_id)
            size = _size(folder / "memory" / FILE) + written_bytes(str(written))
            leaving = make_room(self.all(), self._limit, size)
            if leaving is None:
                raise NotKept(self._too_large())
            self._remove(leaving)
            _copy_tree(written, folder / "above", first_id)
        except OSError as error:
            raise NotKept(f"its memory cannot be kept: {error}") from error
        image = MemoryImage(
            key=key, function=function, size=size, used_at=self._monotonic(), folder=folder, config=config
        )
        with self._lock:
            self._images[key] = image
        return image

    def give_up(self, folder: Path) -> None:
        """It was not kept. Blocks."""
        remove(folder)

    def _too_large(self) -> str:
        return f"it does not fit into the {self._limit >> 20} MiB for memory snapshots on its machine"

    def _remove(self, keys: list[str]) -> int:
        gone = []
        with self._lock:
            for key in keys:
                image = self._images.get(key)
                if image is not None and not image.users:
                    gone.append(self._images.pop(key))
        for image in gone:
            remove(image.folder)
        return len(gone)


def _size(file: Path) -> int:
    try:
        return file.lstat().st_blocks * 512
    except OSError:
        return 0


def _take_over(memory: Path, first_id: int) -> None:
    """Nothing is followed, nothing else may be there, and nobody has it open any more."""
    folder = os.open(memory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(folder, 0, 0)
        os.fchmod(folder, 0o700)
        if os.listdir(folder) != [FILE]:
            raise OSError(0, "runsc has not left one file")
        file = os.open(FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        try:
            about = os.fstat(file)
            if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1 or about.st_uid < first_id or not about.st_size:
                raise OSError(0, "what runsc has left is not an image")
            os.fchown(file, 0, 0)
            os.fchmod(file, 0o600)
        finally:
            os.close(file)
    finally:
        os.close(folder)


def _copy_tree(source: Path, target: Path, first_id: int) -> None:
    """As a layer: owners as the container saw them. Links are copied, never followed."""
    done = subprocess.run(["cp", "-a", "--", str(source), str(target)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(target, ignore_errors=True)
        raise OSError(0, done.stderr.strip()[-500:])
    waiting = [str(target)]
    _shift(str(target), first_id)
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                _shift(entry.path, first_id)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def _shift(path: str, first_id: int) -> None:
    about = os.lstat(path)
    if about.st_uid < first_id:
        return  # another name of a file that was shifted
    os.chown(path, about.st_uid - first_id, max(0, about.st_gid - first_id), follow_symlinks=False)
    if not stat.S_ISLNK(about.st_mode):
        os.chmod(path, stat.S_IMODE(about.st_mode))  # which chown has taken bits of
