"""Volume: files on the server, in versions that are there in full or not at all."""

from __future__ import annotations

import enum
import functools
import hashlib
import io
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import IO, TYPE_CHECKING, Any, Callable, NamedTuple, Optional, Union
from urllib.parse import quote

from squall.blocking import blocking, blocking_iterator, blocking_static, gather, immediate
from squall.blocking import run as run_in_thread
from squall.errors import (
    AlreadyExistsError,
    InvalidError,
    NotFoundError,
    UnimplementedArgument,
    VolumeFileNotFoundError,
)
from squall.objects import Ephemeral, Handle, Objects, Place, place, session_and_environment
from squall.origin import refuse_client
from squall.place import is_local

if TYPE_CHECKING:
    from squall.bucket import CloudBucketMount
    from squall.client import Client
    from squall.session import Session
    from squall.spec import VolumeMount

AT_ONCE = 4
"""Blocks on their way."""


class FileEntryType(str, enum.Enum):
    """Kinds of entries. Each is also its word: `entry.type == "file"`."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"

    __str__ = str.__str__


class FileEntry(NamedTuple):
    """What `listdir` tells of a file or folder."""

    path: str
    type: FileEntryType
    mtime: float
    size: int


class Volume(Handle):
    """Files by path. Each change makes a new version: readers see the one before or the one after, never a mix."""

    KIND, WHAT = "VOLUME", "volume"
    objects: Objects

    @immediate
    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        environment_name: Optional[str] = None,
        create_if_missing: bool = False,
        version: Optional[int] = None,
        create_options: Optional[Mapping[str, Any]] = None,
        client: None = None,
    ) -> Volume:
        """A volume of the server. Nothing is asked before it is used. `version` (1 or 2) makes no difference here;
        there are no `create_options`."""
        refuse_client(client)
        _refuse_options(create_options)
        _check_version(version)
        return cls(place(name, environment_name, "volume"), create_if_missing)

    @immediate
    @classmethod
    def from_id(cls, volume_id: str, client: None = None) -> Volume:
        """A volume by its id."""
        refuse_client(client)
        return cls(volume_id)

    @classmethod
    def ephemeral(
        cls,
        client: None = None,
        environment_name: Optional[str] = None,
        version: Optional[int] = None,
        create_options: Optional[Mapping[str, Any]] = None,
    ) -> Ephemeral:
        """A volume without a name for the time of a `with` (or `async with`) block. `version`: see `from_name`."""
        refuse_client(client)
        _refuse_options(create_options)
        _check_version(version)
        return Ephemeral(cls, environment_name)

    # --- looking ---

    @blocking
    def listdir(self, path: str = "/", *, recursive: bool = False) -> list[FileEntry]:
        """What is in a folder. FileNotFoundError if there is none."""
        return self._entries(path, recursive)

    @blocking_iterator
    def iterdir(self, path: str = "/", *, recursive: bool = True) -> Iterator[FileEntry]:
        """What is in a folder and below it, one after the other."""
        yield from self._entries(path, recursive)

    @blocking_iterator
    def read_file(self, path: str) -> Iterator[bytes]:
        """The content of a file, in pieces. FileNotFoundError if there is none."""
        client = _client()
        blocks = self._file(path)["blocks"]
        for first in range(0, len(blocks), AT_ONCE):
            part = blocks[first : first + AT_ONCE]
            yield from gather([functools.partial(_block, client, block) for block in part], AT_ONCE)

    @blocking
    def read_file_into_fileobj(
        self, path: str, fileobj: IO[bytes], progress_cb: Optional[Callable[..., Any]] = None
    ) -> int:
        """Write the content of a file into an open one; how many bytes. `progress_cb(advance=n)` hears of each."""
        size = 0
        for piece in self.read_file(path):
            written = fileobj.write(piece)
            size += written
            if progress_cb is not None:
                progress_cb(advance=written)
        return size

    @blocking
    def current_version(self) -> int:
        """The number of the present version."""
        return int(self._listing("/", False)["version"]["version"])

    def _entries(self, path: str, recursive: bool) -> list[FileEntry]:
        return [
            FileEntry(**{**entry, "type": FileEntryType(entry["type"])})
            for entry in self._listing(path, recursive)["entries"]
        ]

    def _listing(self, path: str, recursive: bool) -> Any:
        return self._get("VOLUME_FILES", path, recursive=recursive)

    def _file(self, path: str) -> Any:
        return self._get("VOLUME_FILE", path)

    def _get(self, route: str, path: str, **asked: Any) -> Any:
        address = f"{self._path(route)}?path={quote(path, safe='')}"
        try:
            return _client().json("GET", address + ("&recursive=true" if asked.get("recursive") else ""))
        except NotFoundError as error:
            raise self._told(error, path) from None

    # --- changing ---

    @blocking
    def remove_file(self, path: str, recursive: bool = False) -> None:
        """Remove a file, or with `recursive` a folder. FileNotFoundError if there is none."""
        self._commit([{"what": "remove", "path": path, "recursive": recursive}], path)

    @blocking
    def copy_files(self, src_paths: Sequence[str], dst_path: str, recursive: bool = False) -> None:
        """Copy files inside the volume, to a path or into a folder; replaces what is there. No bytes are moved."""
        change = {"what": "copy", "path": dst_path, "sources": list(src_paths), "recursive": recursive}
        self._commit([change], ", ".join(src_paths))

    @blocking_static
    def rename(old_name: str, new_name: str, *, client: None = None, environment_name: Optional[str] = None) -> None:
        """Give a volume another name."""
        refuse_client(client)
        Volume.objects.rename(old_name, new_name, environment_name=environment_name)

    def batch_upload(self, force: bool = False, expect: Optional[int] = None) -> Upload:
        """`with volume.batch_upload() as batch:` one new version with all files that are put in the block.

        FileExistsError if one is there, unless `force`; ConflictError if the volume is not at version `expect`."""
        return Upload(self, force, expect)

    def _commit(self, changes: list[dict[str, Any]], about: str, expect: Optional[int] = None) -> int:
        address = self._path("VOLUME_COMMITS")
        try:
            answer = _client().json(
                "POST", address, {"changes": changes, "expect": expect, "request": secrets.token_hex(8)}
            )
        except AlreadyExistsError as error:
            raise FileExistsError(error.message) from None
        except NotFoundError as error:
            raise self._told(error, about) from None
        return int(answer["version"])

    def _told(self, error: NotFoundError, path: str) -> Exception:
        """A missing file is Python's own error, too."""
        return error if self.object_id in error.message else VolumeFileNotFoundError(f"{self!r} has no {path}")

    def _path(self, route: str) -> str:
        from squall.http_api.routes import Route

        path: str = getattr(Route, route)
        return path.format(object=self._looked_up())

    # --- as a folder of a container ---

    def with_mount_options(self, *, read_only: Optional[bool] = None, sub_path: Optional[str] = None) -> Volume:
        """The same volume, mounted otherwise by `volumes={...}`: not to be written to, or only one folder of it."""
        if read_only not in (None, True, False):
            raise InvalidError(f"read_only must be True or False, got {read_only!r}")
        chosen = type(self)(self._source, self._create)
        chosen._id = self._id
        chosen._read_only = self._read_only if read_only is None else read_only
        chosen._sub_path = self._sub_path if sub_path is None else _checked_sub_path(sub_path)
        return chosen

    def read_only(self) -> Volume:
        """The same volume; containers cannot write to it where it is mounted."""
        return self.with_mount_options(read_only=True)

    @blocking
    def commit(self, expect: Optional[int] = None) -> int:
        """In a container that has it mounted: what was changed there becomes a new version; its number.

        In a build step, which commits when it has ended: the version that the step began with.

        RuntimeError if that fails: nothing is lost then, and the next commit tries again. ConflictError if the volume
        is not at version `expect`."""
        from squall import build_volumes, mounted

        built = build_volumes.version_of(self)
        return mounted.of(self).commit(expect) if built is None else built

    @blocking
    def reload(self) -> None:
        """In a container that has it mounted: see the newest version. What was changed here is committed first.

        RuntimeError while files of the volume are open. A build step goes on with the version that it began with."""
        from squall import build_volumes, mounted

        if build_volumes.version_of(self) is None:
            mounted.of(self).reload()

    @property
    def label(self) -> str:
        """What says in the recipe of an image which volume it is."""
        source = self._source
        return f"{source.environment or ''}/{source.name}" if isinstance(source, Place) else self._id or ""

    def mount_at(self, path: str, session: Session, environment: str) -> VolumeMount:
        """How a spec names it."""
        from squall.spec import VolumeMount

        found, name, home = self._id, "", environment
        if isinstance(self._source, Place):
            name, home = self._source.name, self._source.environment or environment
            found = self._found(session, home)["id"]
        return VolumeMount(path, found, name, home, self._read_only, self._sub_path)

    _read_only, _sub_path = False, ""

    def __reduce__(self) -> tuple[Any, ...]:
        return _handle, ((self._id or self._source), self._create, self._read_only, self._sub_path)


class Upload:
    """Files that become one version when the block ends. If it raises, there is none."""

    def __init__(self, volume: Volume, force: bool, expect: Optional[int]) -> None:
        self._volume, self._force, self._expect = volume, force, expect
        self.changes: list[dict[str, Any]] = []
        """What is to be committed."""
        self.version: Optional[int] = None
        """Of the volume, after the block."""

    def put_file(
        self, local_file: Union[str, os.PathLike[str], IO[bytes]], remote_path: str, mode: Optional[int] = None
    ) -> None:
        """A file of this machine, or an open one. A path that ends with a slash keeps the file's name."""
        if hasattr(local_file, "read"):
            content: IO[bytes] = local_file  # type: ignore[assignment]
            self._add(content, remote_path, 0o644 if mode is None else mode)
            return
        path = os.fspath(local_file)
        target = remote_path + os.path.basename(path) if remote_path.endswith("/") else remote_path
        with open(path, "rb") as file:
            self._add(file, target, stat.S_IMODE(os.stat(path).st_mode) if mode is None else mode)

    def put_directory(self, local_path: Union[str, os.PathLike[str]], remote_path: str, recursive: bool = True) -> None:
        """The files of a folder of this machine."""
        base = os.fspath(local_path)
        if not os.path.isdir(base):
            raise NotADirectoryError(f"{base} is not a folder")
        for folder, folders, files in os.walk(base):
            if not recursive:
                folders.clear()
            below = os.path.relpath(folder, base).replace(os.sep, "/")
            for name in sorted(files):
                self.put_file(os.path.join(folder, name), "/".join((remote_path.rstrip("/"), below, name)))

    def _add(self, content: IO[bytes], path: str, mode: int) -> None:
        import time

        from squall.http_api.storage import BLOCK_BYTES

        client, blocks, size = _client(), list[str](), 0
        while pieces := list(_pieces(content, BLOCK_BYTES)):
            blocks += gather([functools.partial(_stored, client, piece) for piece in pieces], AT_ONCE)
            size += sum(map(len, pieces))
        file = {"path": path, "size": size, "mtime": time.time(), "mode": mode, "blocks": blocks}
        self.changes.append({"what": "put", "path": path, "file": file, "force": self._force})

    def __enter__(self) -> Upload:
        self._volume._looked_up()
        return self

    def __exit__(self, kind: Optional[type[BaseException]], *_: object) -> None:
        if kind is None and self.changes:
            self.version = self._volume._commit(self.changes, "such file", self._expect)

    async def __aenter__(self) -> Upload:
        return await run_in_thread(self.__enter__)

    async def __aexit__(self, kind: Optional[type[BaseException]], *_: object) -> None:
        await run_in_thread(functools.partial(self.__exit__, kind))


AbstractVolumeUploadContextManager = Upload
"""The name by which programs annotate what `batch_upload()` gives."""


def _handle(source: Union[Place, str], create: bool, read_only: bool, sub_path: str) -> Volume:
    return Volume(source, create).with_mount_options(read_only=read_only, sub_path=sub_path)


def checked_mounts(given: Any) -> dict[str, Union[Volume, CloudBucketMount]]:
    """What `volumes=` was given. Raises `InvalidError`."""
    from squall.bucket import CloudBucketMount

    if not isinstance(given, Mapping):
        raise InvalidError(
            f"volumes= must map folders to volumes, got a {type(given).__name__}",
            fix='Write `volumes={"/data": squall.Volume.from_name("name")}`.',
        )
    for path, volume in given.items():
        if not isinstance(path, (str, PurePath)):
            raise InvalidError(f"volumes= must map folders to volumes, got {path!r} for a folder")
        if not isinstance(volume, (Volume, CloudBucketMount)):
            raise InvalidError(f"volumes= must map folders to volumes, got a {type(volume).__name__} for {path}")
    mounts = {(str(path).rstrip("/") or "/") if path else "": volume for path, volume in given.items()}
    if len(mounts) < len(given):
        raise InvalidError("volumes= names a folder twice")
    if is_local():
        from squall.spec import check_mount_point

        for path in mounts:
            check_mount_point(path)
    return mounts


def _checked_sub_path(path: Any) -> str:
    if not isinstance(path, (str, PurePath)):
        raise InvalidError(f"sub_path must be text, got {path!r}")
    parts = [part for part in str(path).split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in str(path):
        raise InvalidError(f"sub_path {str(path)!r} is not a folder of a volume", fix="Write it without `..`.")
    return "/".join(parts)


Volume.objects = Objects(lambda: Volume, "volume", "VOLUMES", "VOLUME")


def _client() -> Client:
    return session_and_environment(None)[0].client


def _refuse_options(given: Optional[Mapping[str, Any]]) -> None:
    if given:
        raise UnimplementedArgument(
            f"squall does not have `create_options=` of a volume: {', '.join(map(str, given))}", fix="Remove it."
        )


def _check_version(version: Optional[int]) -> None:
    if version not in (None, 1, 2):
        raise InvalidError(f"the version of a volume is 1 or 2, got {version!r}")


def _pieces(content: IO[bytes], size: int) -> Iterator[bytes]:
    for _ in range(AT_ONCE):
        piece = content.read(size)
        while 0 < len(piece) < size and (more := content.read(size - len(piece))):  # pipes give what they have
            piece += more
        if not piece:
            return
        yield piece


def _stored(client: Client, piece: bytes) -> str:
    from squall.http_api.routes import Route

    sha256 = hashlib.sha256(piece).hexdigest()
    client.upload(sha256, piece, Route.VOLUME_BLOCK)
    return sha256


def _block(client: Client, sha256: str) -> bytes:
    from squall.http_api.routes import Route

    buffer = io.BytesIO()

    def restart() -> None:
        buffer.seek(0)
        buffer.truncate()

    client.download(sha256, buffer.write, restart, Route.VOLUME_BLOCK)
    return buffer.getvalue()
