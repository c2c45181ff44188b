"""`squall volume`: files into volumes, out of them, and what is in them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Callable, Optional, TypeVar

from squall.cli import asking, table
from squall.cli.image_pruning import mebibytes
from squall.cli.server import for_command
from squall.errors import UsageError
from squall.http_api.routes import Route
from squall.http_api.storage import CollectedBlocks
from squall.spec import from_wire
from squall.volume import FileEntry, Volume

COLLECTING_S = 3600.0
COLLECTED = (("BLOCKS", "what"), ("NUMBER", "blocks"), ("SIZE", "size"))
COLUMNS = (("PATH", "path"), ("TYPE", "type"), ("SIZE", "size"), ("CHANGED", "changed"))


def ls(name: str, path: str, *, environment: Optional[str], as_json: bool) -> int:
    """Prints what is in a folder."""
    with for_command():
        entries = _missing_is_usage(lambda: Volume.from_name(name, environment_name=environment).listdir(path))
    rows = [dict(entry._asdict()) for entry in entries]
    if not as_json:
        for row in rows:
            row.update(changed=table.ago(row["mtime"]))
    table.show(rows, COLUMNS, as_json=as_json, empty="No files.")
    return 0


def put(name: str, local: str, path: str, *, force: bool, environment: Optional[str]) -> int:
    """Uploads a file or a folder."""
    if not os.path.exists(local):
        raise UsageError(f"there is no {local} here")
    volume = Volume.from_name(name, environment_name=environment)
    try:
        with for_command(), volume.batch_upload(force=force) as batch:
            if os.path.isdir(local):
                batch.put_directory(local, path := _folder_target(local, path))
            else:
                batch.put_file(local, path)
    except FileExistsError as error:
        raise UsageError(str(error), fix="Use --force to replace what is there.") from None
    sys.stdout.write(f"✓ Uploaded {local} to {path} of volume {name} (version {batch.version}).\n")
    return 0


def _folder_target(local: str, path: str) -> str:
    """Into a folder (`/`, `/data/`) a folder goes with its name, as files do; `local/` means what is in it."""
    name = os.path.basename(local)
    return path + name if path.endswith("/") and name not in (".", "..") else path


def get(name: str, path: str, local: str, *, force: bool, environment: Optional[str]) -> int:
    """Downloads a file or a folder."""
    with for_command():
        volume = Volume.from_name(name, environment_name=environment)
        entries = _missing_is_usage(lambda: volume.listdir(path, recursive=True))
        wanted = path.strip("/")
        if local == "-":
            if [entry.path for entry in entries] != [wanted]:
                raise UsageError(f"{path} is a folder: only a file can go to standard output")
            volume.read_file_into_fileobj(wanted, sys.stdout.buffer)
            return 0
        files = [entry for entry in entries if entry.type == "file"]
        for entry in files:
            _save(volume, entry, _target(entry.path, wanted, local), force)
    sys.stdout.write(f"✓ Downloaded {len(files)} files of volume {name}.\n")
    return 0


def _target(path: str, wanted: str, local: str) -> str:
    """A file goes to `local`, or into it if that is a folder; a folder keeps its name, too."""
    if path == wanted and not (os.path.isdir(local) or local.endswith("/")):
        return local
    return os.path.join(local, os.path.relpath(path, os.path.dirname(wanted) or "."))


def _save(volume: Volume, entry: FileEntry, target: str, force: bool) -> None:
    if os.path.lexists(target) and not force:
        raise UsageError(f"{target} is there", fix="Use --force to replace it.")
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    part = f"{target}.part-{os.getpid()}"
    try:
        with open(part, "wb") as file:
            volume.read_file_into_fileobj(entry.path, file)
        os.replace(part, target)
    finally:
        if os.path.exists(part):
            os.remove(part)


def cp(name: str, paths: Sequence[str], *, recursive: bool, environment: Optional[str]) -> int:
    """Copies files inside a volume."""
    if len(paths) < 2:
        raise UsageError("cp needs what to copy, and where to", fix="Write `squall volume cp NAME SOURCE TARGET`.")
    *sources, target = paths
    with for_command():
        volume = Volume.from_name(name, environment_name=environment)
        _missing_is_usage(lambda: volume.copy_files(sources, target, recursive=recursive))
    sys.stdout.write(f"✓ Copied {', '.join(sources)} to {target} of volume {name}.\n")
    return 0


def rm(name: str, path: str, *, recursive: bool, environment: Optional[str]) -> int:
    """Removes a file or a folder."""
    with for_command():
        volume = Volume.from_name(name, environment_name=environment)
        _missing_is_usage(lambda: volume.remove_file(path, recursive=recursive))
    sys.stdout.write(f"✓ Removed {path} of volume {name}.\n")
    return 0


def rename(name: str, new_name: str, *, yes: bool, environment: Optional[str]) -> int:
    """Gives a volume another name."""
    asking.confirm(
        f"Rename volume {name} to {new_name}? Programs that name it do not find it then.", "it keeps its name", yes
    )
    with for_command():
        Volume.rename(name, new_name, environment_name=environment)
    sys.stdout.write(f"✓ Volume {name} is called {new_name} now.\n")
    return 0


def gc(*, dry_run: bool, as_json: bool) -> int:
    """Prints what was freed; 1 if that was not all."""
    with for_command() as session:
        body = {"dry_run": dry_run}
        answer = session.client.json("POST", Route.VOLUME_COLLECTIONS, body, timeout_s=COLLECTING_S)
    found = from_wire(CollectedBlocks, answer)
    lines = (
        ("would be freed" if dry_run else "freed", found.removed, found.removed_bytes),
        ("not needed, but not for long enough", found.waiting, found.waiting_bytes),
        ("needed", found.needed, found.needed_bytes),
    )
    rows = [{"what": what, "blocks": blocks, "size": mebibytes(size)} for what, blocks, size in lines]
    table.show([answer] if as_json else rows, COLLECTED, as_json=as_json, empty="")
    if not found.is_complete:
        sys.stderr.write("Not all was freed: another gateway is at it, or it took too long. Try again later.\n")
    return 0 if found.is_complete else 1


R = TypeVar("R")


def _missing_is_usage(use: Callable[[], R]) -> R:
    try:
        return use()
    except (FileNotFoundError, FileExistsError) as error:
        raise UsageError(str(error), fix="`squall volume ls` shows what is there.") from None
