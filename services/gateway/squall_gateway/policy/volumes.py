"""Files of a volume: what a commit makes of them. Pure. Folders are there as long as there are files in them."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from squall.errors import AlreadyExistsError, InvalidError, NotFoundError
from squall.http_api import VolumeChange, VolumeEntry, VolumeFile

MAX_PATH_CHARACTERS, MAX_NAME_BYTES = 4096, 255
MAX_FILES = 500_000

Files = Mapping[str, VolumeFile]


def checked_path(path: str) -> str:
    """A path without leading and trailing slashes; "" is the volume itself. Raises `InvalidError`."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path or len(path) > MAX_PATH_CHARACTERS:
        raise InvalidError(
            f"{path[:200]!r} is not a path in a volume", fix="Write it from the volume's root, without `..`."
        )
    if any(len(part.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES for part in parts):
        raise InvalidError(f"a name in {path[:200]!r} is longer than {MAX_NAME_BYTES} bytes")
    return "/".join(parts)


def applied(files: Files, changes: Sequence[VolumeChange]) -> dict[str, VolumeFile]:
    """The files after all changes. Raises what is wrong with the first one that cannot be made: then none is."""
    tree = _Tree(files)
    for change in changes:
        match change.what:
            case "put":
                _put(tree, change)
            case "remove":
                _remove(tree, change)
            case "copy":
                _copy(tree, change)
            case _:
                raise InvalidError(f"a volume has no change {change.what!r}")
    if len(tree.files) > MAX_FILES:
        raise InvalidError(f"a volume can have {MAX_FILES} files", fix="Pack small files into archives.")
    return tree.files


class _Tree:
    """Files by path, and how many there are below each folder: thousands of changes must not look at all files each."""

    def __init__(self, files: Files) -> None:
        self.files = dict(files)
        self.folders: Counter[str] = Counter()
        for path in files:
            self.folders.update(_folders_of(path))

    def place(self, path: str, file: VolumeFile, force: bool) -> None:
        if not path or path in self.folders:
            raise AlreadyExistsError(f"{path or '/'} is a folder", fix="Give the name of a file in it.")
        if path in self.files and not force:
            raise AlreadyExistsError(f"{path} is there", fix="Use force=True to replace it.")
        for above in _folders_of(path):
            if above in self.files:
                raise AlreadyExistsError(f"{above} is a file: {path} cannot be in it")
        if path not in self.files:
            self.folders.update(_folders_of(path))
        self.files[path] = file

    def remove(self, path: str) -> None:
        del self.files[path]
        for folder in _folders_of(path):
            self.folders[folder] -= 1
            if not self.folders[folder]:
                del self.folders[folder]

    def below(self, path: str) -> list[str]:
        """The files in a folder, at any depth; "" is the volume itself."""
        if not path:
            return list(self.files)
        return [each for each in self.files if each.startswith(f"{path}/")] if path in self.folders else []


def _folders_of(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _put(tree: _Tree, change: VolumeChange) -> None:
    if change.file is None:
        raise InvalidError("a put needs a file")
    path = checked_path(change.path)
    tree.place(path, replace(change.file, path=path), change.force)


def _remove(tree: _Tree, change: VolumeChange) -> None:
    path = checked_path(change.path)
    if path in tree.files:
        tree.remove(path)
        return
    if path and path not in tree.folders:
        raise NotFoundError(f"there is no {path}")
    if not change.recursive:
        raise InvalidError(f"{path or '/'} is a folder", fix="Use recursive=True to remove it with all that is in it.")
    for each in tree.below(path):
        tree.remove(each)


def _copy(tree: _Tree, change: VolumeChange) -> None:
    target = checked_path(change.path)
    into = len(change.sources) > 1 or change.path.endswith("/") or target in tree.folders or not target
    for text in change.sources:
        source = checked_path(text)
        place = posixpath.join(target, posixpath.basename(source)) if into else target
        if source in tree.files:
            tree.place(place, replace(tree.files[source], path=place), True)
            continue
        inside = tree.below(source) if source else []
        if not inside:
            raise NotFoundError(f"there is no {source}")
        if not change.recursive:
            raise InvalidError(f"{source} is a folder", fix="Use recursive=True to copy it with all that is in it.")
        for each in inside:
            below = place + each[len(source) :]
            tree.place(below, replace(tree.files[each], path=below), True)


def listed(files: Files, path: str, *, recursive: bool) -> list[VolumeEntry]:
    """What is in a folder, or the file itself. Raises `NotFoundError`."""
    wanted = checked_path(path)
    if wanted in files:
        return [_entry(files[wanted])]
    prefix = f"{wanted}/" if wanted else ""
    inside = [file for each, file in files.items() if each.startswith(prefix)]
    if not inside and wanted:
        raise NotFoundError(f"there is no {wanted}")
    entries: dict[str, VolumeEntry] = {}
    for file in inside:
        *folders, _ = file.path[len(prefix) :].split("/")
        for depth in range(1, len(folders) + 1) if recursive else range(1, min(len(folders), 1) + 1):
            folder = prefix + "/".join(folders[:depth])
            newest = max(file.mtime, entries[folder].mtime if folder in entries else 0.0)
            entries[folder] = VolumeEntry(folder, "directory", newest, 0)
        if recursive or not folders:
            entries[file.path] = _entry(file)
    return [entries[each] for each in sorted(entries)]


def _entry(file: VolumeFile) -> VolumeEntry:
    return VolumeEntry(file.path, "file", file.mtime, file.size)
