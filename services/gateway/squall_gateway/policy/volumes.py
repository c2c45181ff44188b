"""Files of a volume: what a commit makes of them. Pure. Folders are there as long as there are files in them."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
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
    present = dict(files)
    for change in changes:
        match change.what:
            case "put":
                _put(present, change)
            case "remove":
                _remove(present, change)
            case "copy":
                _copy(present, change)
            case _:
                raise InvalidError(f"a volume has no change {change.what!r}")
    if len(present) > MAX_FILES:
        raise InvalidError(f"a volume can have {MAX_FILES} files", fix="Pack small files into archives.")
    return present


def _put(present: dict[str, VolumeFile], change: VolumeChange) -> None:
    if change.file is None:
        raise InvalidError("a put needs a file")
    path = checked_path(change.path)
    _place(present, path, replace(change.file, path=path), change.force)


def _place(present: dict[str, VolumeFile], path: str, file: VolumeFile, force: bool) -> None:
    if not path or _is_folder(present, path):
        raise AlreadyExistsError(f"{path or '/'} is a folder", fix="Give the name of a file in it.")
    if path in present and not force:
        raise AlreadyExistsError(f"{path} is there", fix="Use force=True to replace it.")
    above = path
    while "/" in above:
        above = above.rpartition("/")[0]
        if above in present:
            raise AlreadyExistsError(f"{above} is a file: {path} cannot be in it")
    present[path] = file


def _remove(present: dict[str, VolumeFile], change: VolumeChange) -> None:
    path = checked_path(change.path)
    if path in present:
        del present[path]
        return
    inside = [each for each in present if each.startswith(f"{path}/")] if path else list(present)
    if not inside and path:
        raise NotFoundError(f"there is no {path}")
    if not change.recursive:
        raise InvalidError(f"{path or '/'} is a folder", fix="Use recursive=True to remove it with all that is in it.")
    for each in inside:
        del present[each]


def _copy(present: dict[str, VolumeFile], change: VolumeChange) -> None:
    target = checked_path(change.path)
    into = len(change.sources) > 1 or change.path.endswith("/") or _is_folder(present, target) or not target
    for text in change.sources:
        source = checked_path(text)
        place = posixpath.join(target, posixpath.basename(source)) if into else target
        if source in present:
            _place(present, place, replace(present[source], path=place), True)
            continue
        inside = [each for each in present if each.startswith(f"{source}/")]
        if not inside:
            raise NotFoundError(f"there is no {source}")
        if not change.recursive:
            raise InvalidError(f"{source} is a folder", fix="Use recursive=True to copy it with all that is in it.")
        for each in inside:
            below = place + each[len(source) :]
            _place(present, below, replace(present[each], path=below), True)


def _is_folder(present: Mapping[str, VolumeFile], path: str) -> bool:
    return any(each.startswith(f"{path}/") for each in present)


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
