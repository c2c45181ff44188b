"""The bundle: a zip of the user's code and attached local files, named by its hash. Paths are those in the container.

Owns which files belong to a function: the file that defines it, or its whole top-level package, and what its image
attaches. The same files give the same bytes, so that an unchanged program uploads and restarts nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import stat
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, Callable, NamedTuple

from squall import patterns
from squall.connection import FileBody
from squall.errors import InvalidError, ModuleNotMountable
from squall.image_files import Ignore, LocalDir, LocalFile, LocalSource
from squall.payload import script_module

if TYPE_CHECKING:
    from squall.image import Image

ROOT = "/root"
EPOCH = (1980, 1, 1, 0, 0, 0)
SKIPPED_FOLDERS = {"__pycache__"}
CHUNK_BYTES = 1 << 20

Files = dict[str, str]
"""Local path by path in the container."""


class Source(NamedTuple):
    """Where a function's code is and what it is called in a container."""

    module: str
    files: Files


class Bundle(NamedTuple):
    """A finished zip."""

    body: FileBody
    sha256: str


def source_of(raw: Any, include: bool) -> Source:
    """The module of a function or class, and its files if they are to be included."""
    name = raw.__module__
    module = sys.modules.get(name)
    if name == "__main__":
        script = script_module()
        if script is None:
            raise InvalidError(
                f"{raw.__qualname__} is defined in an interactive session, which a container cannot import",
                fix="Put it into a file.",
            )
        name = script
    file = getattr(module, "__file__", None)
    if not include:
        return Source(name, {})
    if file is None:
        raise InvalidError(f"the source file of {raw.__qualname__} is not known", fix="Put it into a file.")
    if "." in name or getattr(module, "__path__", None) is not None:
        top = name.partition(".")[0]
        return Source(name, _package(top, _package_folder(file, name, module)))
    return Source(name, {f"{ROOT}/{name}.py": os.path.abspath(file)})


def _package_folder(file: str, name: str, module: Any) -> str:
    """The folder of the top-level package that a module's file lies in."""
    folder = os.path.dirname(os.path.abspath(file))
    depth = name.count(".") if getattr(module, "__path__", None) is not None else name.count(".") - 1
    for _ in range(depth):
        folder = os.path.dirname(folder)
    return folder


def _package(name: str, folder: str) -> Files:
    return dict(_walk(folder, f"{ROOT}/{name}", _not_python))


def local_files(image: Image) -> Files:
    """What an image attaches, by path in the container; later ones win. Raises `InvalidError` for what is not there."""
    return files_of(image.local_sources)


def files_of(sources: Sequence[LocalSource]) -> Files:
    """Local files by path in the container; later ones win. Raises `InvalidError` for what is not there."""
    files: Files = {}
    for source in sources:
        if isinstance(source, LocalFile):
            if not os.path.isfile(source.local):
                raise _missing("file", source.local)
            files[source.remote] = os.path.abspath(source.local)
        elif isinstance(source, LocalDir):
            if not os.path.isdir(source.local):
                raise _missing("folder", source.local)
            files.update(_walk(os.path.abspath(source.local), source.remote.rstrip("/"), ignores(source.ignore)))
        else:
            left_out = _not_python if source.ignore is None else ignores(source.ignore)
            for name in source.modules:
                files.update(_module_files(name, left_out))
    return files


def _missing(what: str, path: str) -> InvalidError:
    return InvalidError(
        f"the local {what} {path} does not exist",
        fix="Correct the path in add_local_*; relative ones start at the working directory.",
    )


def _module_files(name: str, left_out: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise ModuleNotMountable(f"the module {name} cannot be found here: {error}") from error
    if spec is None:
        raise ModuleNotMountable(f"the module {name} cannot be found here")
    remote = f"{ROOT}/{name.replace('.', '/')}"
    if spec.submodule_search_locations:
        for folder in spec.submodule_search_locations:
            yield from _walk(folder, remote, left_out)
    elif spec.origin and spec.origin.endswith(".py"):
        yield f"{remote}.py", spec.origin
    else:
        raise ModuleNotMountable(f"the module {name} is not made of Python files ({spec.origin})")


def _not_python(path: str) -> bool:
    return not path.endswith(".py")


def ignores(ignore: Ignore) -> Callable[[str], bool]:
    """Whether a path below a folder is left out."""
    if callable(ignore):
        from pathlib import Path

        decide = ignore
        return lambda path: bool(decide(Path(path)))
    return patterns.matcher(ignore)


def files_below(folder: str) -> Iterator[tuple[str, str]]:
    """(path below the folder, local path) of every file in it."""
    for remote, local in _walk(folder, "", lambda _: False):
        yield remote[1:], local


def _walk(folder: str, remote: str, left_out: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """(path in the container, local path) of every file below a folder that is not ignored."""
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS and not _is_loop(here, name))
        for name in sorted(names):
            local = os.path.join(here, name)
            below = os.path.relpath(local, folder).replace(os.sep, "/")
            if not left_out(below):
                yield f"{remote}/{below}", local


def _is_loop(here: str, name: str) -> bool:
    """Whether a folder is a link to one that it lies in."""
    path = os.path.join(here, name)
    return os.path.islink(path) and os.path.join(os.path.realpath(here), "").startswith(
        os.path.join(os.path.realpath(path), "")
    )


@contextlib.contextmanager
def zipped(files: Files) -> Iterator[Bundle]:
    """The files as a zip, in a temporary file that is gone after the block."""
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for remote in sorted(files):
                _add(archive, remote, files[remote])
        size = file.tell()
        yield Bundle(FileBody(file, size), _sha256(file))


def _add(archive: zipfile.ZipFile, remote: str, local: str) -> None:
    try:
        mode = os.stat(local).st_mode
    except OSError as error:
        raise InvalidError(f"{local} cannot be read: {error.strerror}") from error
    entry = zipfile.ZipInfo(remote.lstrip("/"), EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    # Only whether it is executable: owner and umask of this machine must not change the hash.
    entry.external_attr = (stat.S_IFREG | (0o755 if mode & 0o100 else 0o644)) << 16
    with open(local, "rb") as source, archive.open(entry, "w", force_zip64=os.path.getsize(local) > 1 << 30) as target:
        for chunk in iter(lambda: source.read(CHUNK_BYTES), b""):
            target.write(chunk)


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
        digest.update(chunk)
    return digest.hexdigest()
