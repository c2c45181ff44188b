"""Local files of images: what is attached when a container starts, and what is copied into a layer of the image.

Owns the checks of their paths, and the content address of copied files: a zip of them, which goes to the blob store.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, Union

from squall.errors import InvalidError

if TYPE_CHECKING:
    from squall.bundle import Bundle

Ignore = Union[Sequence[str], Callable[[Any], bool]]


class LocalFile(NamedTuple):
    """One file from here."""

    local: str
    remote: str


class LocalDir(NamedTuple):
    """A folder from here with everything below it that `ignore` does not match."""

    local: str
    remote: str
    ignore: Ignore


class LocalPython(NamedTuple):
    """Importable modules or packages from here."""

    modules: tuple[str, ...]
    ignore: Optional[Ignore]


LocalSource = Union[LocalFile, LocalDir, LocalPython]


class Later:
    """A value that is read when it is first needed, once."""

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read
        self._found: Any = None

    def get(self) -> Any:
        """The value. Raises `InvalidError` if it cannot be read."""
        if self._found is None:
            self._found = self._read()
        return self._found


class Copied(Later):
    """Files of this machine that a build step needs: as a value, where the builder finds them in the blob store."""

    def __init__(self, find: Callable[[], dict[str, str]], given: tuple[LocalSource, ...] = ()) -> None:
        super().__init__(self._address)
        self._find = find
        self.given = given
        """Of `add_local_*`: the same files, to be attached."""

    def _address(self) -> dict[str, Any]:
        with self.zipped() as bundle:
            return {"sha256": bundle.sha256, "bytes": bundle.body.size}

    @contextlib.contextmanager
    def zipped(self) -> Iterator[Bundle]:
        """The files as a zip whose paths are those in the image. Raises `InvalidError` for what is not there."""
        from squall import bundle

        with bundle.zipped(self._find()) as archive:
            yield archive


def sources(*given: LocalSource) -> Copied:
    """What `add_local_*(copy=True)` copies."""

    def find() -> dict[str, str]:
        from squall import bundle

        return bundle.files_of(given)

    return Copied(find, given)


def file(local_path: Union[str, os.PathLike[str]], remote_path: str) -> LocalFile:
    """A file, under its own name if the remote path ends with a slash."""
    local, remote = os.fspath(local_path), absolute(remote_path)
    return LocalFile(local, remote + os.path.basename(local) if remote.endswith("/") else remote)


def folder(local_path: Union[str, os.PathLike[str]], remote_path: str, ignored: Ignore) -> LocalDir:
    """A folder without what is ignored."""
    return LocalDir(os.fspath(local_path), absolute(remote_path), ignore(ignored))


def python(modules: Sequence[str], ignored: Optional[Ignore]) -> LocalPython:
    """Modules by their names."""
    for module in modules:
        if not all(part.isidentifier() for part in str(module).split(".")):
            raise InvalidError(f"{module!r} is not a module name", fix="Name importable modules, not files.")
    return LocalPython(tuple(modules), None if ignored is None else ignore(ignored))


def absolute(remote: str) -> str:
    """A path of a container. Raises `InvalidError`."""
    remote = os.fspath(remote)
    if not remote.startswith("/"):
        raise InvalidError(
            f"the remote path {remote!r} is not absolute", fix="Write it from the container's root, as /root/data."
        )
    if ".." in remote.split("/"):
        raise InvalidError(f"the remote path {remote!r} contains '..'")
    return remote


def ignore(ignored: Any) -> Ignore:
    """Patterns, or a function of a path. Raises `InvalidError`."""
    if callable(ignored):
        given: Ignore = ignored
        return given
    if isinstance(ignored, str) or not all(isinstance(pattern, str) for pattern in ignored):
        raise InvalidError(f"ignore must be a list of patterns or a function of the path, got {ignored!r}")
    return tuple(ignored)
