"""Files of a volume: what a commit makes of them. Pure. Folders are there as long as there are files in them."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from squall.errors import AlreadyExistsError, InvalidError, NotFoundError
from squall.http_api.storage import MAX_MTIME_S, VolumeChange, VolumeEntry, VolumeFile

MAX_PATH_CHARACTERS, MAX_NAME_BYTES = 4096, 255
MAX_FILES = 500_000
MAX_LINKS = 40
"""On the way to one file, as Linux has it."""

Files = Mapping[str, VolumeFile]


def checked_path(path: str) -> str:
    """A path without leading and trailing slashes; "" is the volume itself. Raises `InvalidError`."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path or len(path) > MAX_PATH_CHARACTERS or not _is_text(path):
        raise InvalidError(
            f"{path[:200]!r} is not a path in a volume", fix="Write it from the volume's root, without `..`."
        )
    if any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        raise InvalidError(f"a name in {path[:200]!r} is longer than {MAX_NAME_BYTES} bytes")
    return "/".join(parts)


def _is_text(name: str) -> bool:
    """JSON carries halves of characters, which no file system and no answer in UTF-8 does."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_file(path: str, file: VolumeFile) -> None:
    """Raises `InvalidError` for what no machine could make a file of."""
    if not -MAX_MTIME_S <= file.mtime <= MAX_MTIME_S:
        raise InvalidError(f"{path[:200]!r}: no file has the time {file.mtime}", fix="Give seconds since 1970.")
    if not 0 <= file.mode <= 0o7777:
        raise InvalidError(f"{path[:200]!r}: no file has the mode {file.mode}", fix="Give one like 0o644.")


def applied(files: Files, changes: Sequence[VolumeChange]) -> dict[str, VolumeFile]:
    """The files after all changes. Raises what is wrong with the first one that cannot be made: then none is."""
    tree = _Tree(files)
    for change in changes:
        match change.what:
            case "put":
                _put(tree, change)
            case "remove":
                _remove(tree, change)
            case "write":
                _write(tree, change)
            case "unlink":
                _unlink(tree, change)
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

    def clear_way(self, path: str) -> None:
        """Nothing stands where `path` is to be: no folder of that name, no file in place of a folder above it."""
        for each in self.below(path):
            self.remove(each)
        for above in _folders_of(path):
            if above in self.files:
                self.remove(above)

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


def _write(tree: _Tree, change: VolumeChange) -> None:
    """What a container wrote into its mount counts, whatever others have made there meanwhile."""
    if change.file is None:
        raise InvalidError("a write needs a file")
    path = checked_path(change.path)
    if not path:
        raise InvalidError("a write needs the path of a file")
    tree.clear_way(path)
    tree.place(path, replace(change.file, path=path), True)


def _unlink(tree: _Tree, change: VolumeChange) -> None:
    path = checked_path(change.path)
    if path in tree.files:
        tree.remove(path)


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
            _place_copy(tree, tree.files[source], place)
            continue
        inside = tree.below(source) if source else []
        if not inside:
            raise NotFoundError(f"there is no {source}")
        if not change.recursive:
            raise InvalidError(f"{source} is a folder", fix="Use recursive=True to copy it with all that is in it.")
        for each in inside:
            below = place + each[len(source) :]
            _place_copy(tree, tree.files[each], below)


def _place_copy(tree: _Tree, file: VolumeFile, place: str) -> None:
    if file.link:
        check_link(place, file.link)  # it may lead out from its new place
    tree.place(place, replace(file, path=place), True)


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
    return VolumeEntry(file.path, "symlink" if file.link else "file", file.mtime, file.size)


def check_link(path: str, link: str) -> None:
    """Raises `InvalidError` unless a link at `path` stays within the volume, whatever it leads to there."""
    depth = len(checked_path(path).split("/")) - 1
    for part in link.split("/"):
        depth += -1 if part == ".." else part not in ("", ".")
        if depth < 0:
            break
    named = "\0" not in link and len(link) < MAX_PATH_CHARACTERS and _is_text(link)
    if link.startswith("/") or not named or depth < 0:
        raise InvalidError(
            f"the link {path} -> {link[:200]!r} leads out of the volume", fix="Link to files of the volume, relatively."
        )


def followed(files: Files, path: str) -> VolumeFile | None:
    """The file at a path, through the links on its way; None if there is none."""
    left = checked_path(path).split("/")
    here: list[str] = []
    for _ in range(MAX_LINKS):
        while left:
            part = left.pop(0)
            if part == "..":
                here = here[:-1]
                continue
            here.append(part)
            found = files.get("/".join(here))
            if found is not None and found.link:
                here.pop()
                left = [each for each in found.link.split("/") if each not in ("", ".")] + left
                break
        else:
            return files.get("/".join(here))
    return None
