"""NetworkFileSystem: the old name of a Volume, with the methods that it had."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import IO, Any, Callable, Optional, Union

from squall.blocking import blocking, immediate
from squall.objects import place
from squall.old_names import warn_renamed
from squall.origin import refuse_client
from squall.place import is_local
from squall.volume import Volume


def _told(progress_cb: Optional[Callable[..., Any]], changes: list[dict[str, Any]]) -> None:
    """What was stored, a file after the other, as progress bars are told: what it is, how much came, that it is all."""
    for change in changes if progress_cb is not None else ():
        size = int(change["file"]["size"])
        bar = progress_cb(name=change["path"], size=size)  # type: ignore[misc]  # there is one
        progress_cb(bar, advance=size)  # type: ignore[misc]
        progress_cb(bar, complete=True)  # type: ignore[misc]


class NetworkFileSystem(Volume):
    """A Volume under its old name: use `squall.Volume`."""

    @immediate
    @classmethod
    def from_name(  # type: ignore[override]  # a handle of this class
        cls,
        name: str,
        *,
        environment_name: Optional[str] = None,
        create_if_missing: bool = False,
        version: Optional[int] = None,
        client: None = None,
    ) -> NetworkFileSystem:
        """See `Volume.from_name`: the volume of that name."""
        refuse_client(client)
        if is_local():
            warn_renamed("squall.NetworkFileSystem is called squall.Volume now: files are committed, see `commit()`")
        return cls(place(name, environment_name, "volume"), create_if_missing)

    @blocking
    def write_file(self, remote_path: str, fp: IO[bytes], progress_cb: Optional[Callable[..., Any]] = None) -> int:
        """Store the content of an open file; how many bytes. `progress_cb` hears of each file that is stored."""
        with self.batch_upload(force=True) as batch:
            batch.put_file(fp, remote_path)
        _told(progress_cb, batch.changes)
        return int(batch.changes[-1]["file"]["size"])

    @blocking
    def add_local_file(
        self,
        local_path: Union[str, os.PathLike[str]],
        remote_path: Union[str, PurePosixPath, None] = None,
        progress_cb: Optional[Callable[..., Any]] = None,
    ) -> None:
        """Store a file of this machine, by default under its own name."""
        with self.batch_upload(force=True) as batch:
            batch.put_file(local_path, str(remote_path or f"/{os.path.basename(os.fspath(local_path))}"))
        _told(progress_cb, batch.changes)

    @blocking
    def add_local_dir(
        self,
        local_path: Union[str, os.PathLike[str]],
        remote_path: Union[str, PurePosixPath, None] = None,
        progress_cb: Optional[Callable[..., Any]] = None,
    ) -> None:
        """Store the files of a folder of this machine, by default under its own name."""
        with self.batch_upload(force=True) as batch:
            batch.put_directory(local_path, str(remote_path or f"/{os.path.basename(os.path.abspath(local_path))}"))
        _told(progress_cb, batch.changes)
