"""Mount: the old form of local files for containers. They are attached as `Image.add_local_*` does, with a warning."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Union

from squall import image_files
from squall.errors import InvalidError, UnimplementedError
from squall.image import Image
from squall.image_files import LocalSource
from squall.old_names import warn_renamed
from squall.place import is_local

PathLike = Union[str, os.PathLike[str]]


class Mount:
    """Local files, for `mounts=`."""

    def __init__(self, sources: tuple[LocalSource, ...] = ()) -> None:
        self._sources = sources

    @classmethod
    def from_local_file(cls, local_path: PathLike, remote_path: Optional[PathLike] = None) -> Mount:
        """A file; without `remote_path` it lies in the root folder."""
        _warn("Mount.from_local_file", "Image.add_local_file")
        return cls().add_local_file(local_path, remote_path)

    @classmethod
    def from_local_dir(
        cls,
        local_path: PathLike,
        *,
        remote_path: Optional[PathLike] = None,
        condition: Optional[Callable[[str], bool]] = None,
        recursive: bool = True,
    ) -> Mount:
        """A folder. `condition`: whether a file of it, by its path here, is taken."""
        _warn("Mount.from_local_dir", "Image.add_local_dir")
        return cls().add_local_dir(local_path, remote_path=remote_path, condition=condition, recursive=recursive)

    @classmethod
    def from_local_python_packages(cls, *module_names: str) -> Mount:
        """Modules that are importable here."""
        _warn("Mount.from_local_python_packages", "Image.add_local_python_source")
        return cls((image_files.python(module_names, None),))

    @classmethod
    def from_name(cls, name: str, **_others: Any) -> Mount:
        """Is refused: local files travel with the code, and are stored under no name."""
        raise UnimplementedError(
            f"there is no mount {name!r}: local files are attached to functions, and have no name on the server",
            fix="Attach them with `Image.add_local_dir`, or store them in a `squall.Volume`.",
        )

    def add_local_file(self, local_path: PathLike, remote_path: Optional[PathLike] = None) -> Mount:
        """This and a file."""
        return Mount((*self._sources, image_files.file(local_path, _remote(local_path, remote_path))))

    def add_local_dir(
        self,
        local_path: PathLike,
        *,
        remote_path: Optional[PathLike] = None,
        condition: Optional[Callable[[str], bool]] = None,
        recursive: bool = True,
    ) -> Mount:
        """This and a folder."""
        folder = Path(local_path)

        def ignored(path: Any) -> bool:
            deep = not recursive and len(Path(path).parts) > 1
            return deep or (condition is not None and not condition(str(folder / path)))

        return Mount((*self._sources, image_files.folder(folder, _remote(local_path, remote_path), ignored)))

    def attached_to(self, image: Image) -> Image:
        """The image with these files."""
        for source in self._sources:
            image = image._attach(source, False)
        return image


def checked(given: Any) -> tuple[Mount, ...]:
    """`mounts=`. Raises `InvalidError`."""
    if (
        isinstance(given, Mount)
        or not isinstance(given, Sequence)
        or not all(isinstance(each, Mount) for each in given)
    ):
        raise InvalidError(f"mounts= takes a list of squall.Mount, got {given!r}", fix="Use `Image.add_local_*`.")
    return tuple(given)


def _remote(local: PathLike, remote: Optional[PathLike]) -> str:
    return "/" + os.fspath(remote if remote is not None else Path(local).resolve().name).lstrip("/")


def _warn(old: str, new: str) -> None:
    if is_local():
        warn_renamed(f"squall.{old} is called squall.{new} now")
