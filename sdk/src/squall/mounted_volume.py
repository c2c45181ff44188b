"""One volume as a folder of this container: commits of what was changed, and newer versions brought in.

A mount is an overlay: below it lies the version that the container began with, above it what was changed here. All
of this runs as the user's code does and with its rights: nothing outside of the container reads what it wrote, so a
link or a special file in a volume misleads nobody.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import secrets
import shutil
import stat
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn, Optional, Union

from squall import mounted_blocks, open_files, upper
from squall.blocking import gather
from squall.errors import ConflictError, InvalidError, SquallError
from squall.http_api.volume_links import inside
from squall.mounted_blocks import BLOCKS_AT_ONCE, File, Told, all_of, content_of
from squall.upper import STAGE, Changed, Stamp
from squall_runner.volumes import Mount

CHANGES_AT_ONCE = 10_000
"""In one version; the server takes no more."""
READS = 3
"""A file that changes while it is read is read again; after these it is taken as it was found."""
HELD_OPEN_S = 60.0
"""For so long a commit in the background leaves a file alone that is open to be written to."""
FINAL_TRIES, FINAL_WAIT_S = 5, 2.0


class Mounted:
    """One mounted volume."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.label = f"volume {mount.name or mount.id} at {mount.path}"
        self._lock = threading.RLock()
        self._files: Optional[dict[str, File]] = None
        self._stamps: dict[str, Stamp] = {}
        self._version = mount.version
        self._open_since: dict[str, float] = {}
        self._held: set[str] = set()
        """Open to be written to when they were committed: mapped memory changes without a trace in the times."""
        self._unsure: set[str] = set()
        """To be read again whatever their times say."""
        self._warned: set[str] = set()

    def after_fork(self) -> None:
        """A thread of the parent may have held the lock."""
        self._lock = threading.RLock()

    # --- commit ---

    def commit(self, expect: Optional[int] = None) -> int:
        """See `Volume.commit`."""
        if self.mount.read_only:
            raise RuntimeError(f"{self.label} is mounted read-only: there is nothing to commit")
        try:
            with self._lock:
                changed = upper.look(self.mount.upper)
                self._refuse(changed)
                return self._commit_all(changed, expect)
        except ConflictError:
            raise
        except (SquallError, OSError) as error:
            self._failed("commit", error)

    def commit_behind(self) -> None:
        """What has been written completely. What cannot be kept is left out, with a warning."""
        with self._lock:
            changed = upper.look(self.mount.upper)
            self._warn(changed)
            left_out = self._being_written()
            self._unsure |= self._held - self._open_since.keys()
            self._held = (self._held | (self._open_since.keys() - left_out)) & self._open_since.keys()
            self._commit(changed, left_out)

    def finish(self) -> None:
        """The last commit: tried again for a while, because nobody can later."""
        for left in reversed(range(FINAL_TRIES)):
            try:
                with self._lock:
                    changed = upper.look(self.mount.upper)
                    self._warn(changed)
                    self._commit_all(changed)
                return
            except SquallError as error:
                # Others may have committed at the same time for as long as the server tried.
                if not left or not (error.retryable or isinstance(error, ConflictError)):
                    raise
            time.sleep(FINAL_WAIT_S)

    def _commit_all(self, changed: Changed, expect: Optional[int] = None) -> int:
        self._unsure |= self._held
        self._held = self._writing()
        return self._commit(changed, set(), expect)

    def _commit(self, changed: Changed, left_out: set[str], expect: Optional[int] = None) -> int:
        known = self._known()
        removed = [path for path in known if self._is_gone(path, changed)]
        links = {path: target for path, target in self._links(changed) if known.get(path, {}).get("link") != target}
        wanted = [path for path in changed.files if path not in left_out and self._is_new(path, changed.files[path])]
        told = self._not_as_before(self._stored_files(wanted, changed))
        told += [Told(mounted_blocks.link(path, target), Stamp(0, 0, 0, 0, 0)) for path, target in links.items()]
        if not removed and not told:
            return self._version if expect is None else self._expected(expect)
        if len(removed) + len(told) > CHANGES_AT_ONCE and expect is not None:
            raise InvalidError(
                f"{len(removed) + len(told)} changes cannot be one version: at most {CHANGES_AT_ONCE}",
                fix="Commit more often, or without `expect`.",
            )
        version = self._version
        # What is new first: a file that was renamed is always there under one of its names.
        steps: list[Union[Told, str]] = [*told, *removed]
        for first in range(0, len(steps), CHANGES_AT_ONCE):
            version = self._post(steps[first : first + CHANGES_AT_ONCE], expect)
        return version

    def _is_gone(self, path: str, changed: Changed) -> bool:
        """Removed here: hidden, or it was in the layer and is not any more. What is to be seen in spite of that (a
        folder could not be read, names were exchanged meanwhile) is there."""
        if path in changed.files or path in changed.links:
            return False
        if not changed.hides(path) and path not in self._stamps:
            return False
        if any(above in changed.links or above in changed.files for above in upper.folders_of(path)):
            return True
        try:
            return stat.S_ISDIR(os.lstat(os.path.join(self.mount.inner, path)).st_mode) or path in changed.strange
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False

    def _not_as_before(self, told: list[Told]) -> list[Told]:
        differing: list[Told] = []
        for each in told:
            if all_of(each.file) == all_of(self._known().get(each.file["path"])):
                self._stamps[each.file["path"]] = each.stamp
            else:
                differing.append(each)
        return differing

    def _post(self, steps: Sequence[Union[Told, str]], expect: Optional[int]) -> int:
        """One version with these files, and without those paths."""
        changes: list[dict[str, Any]] = []
        for step in steps:
            if isinstance(step, str):
                changes.append({"what": "unlink", "path": self._remote(step)})
            else:
                file = {**step.file, "path": self._remote(step.file["path"])}
                changes.append({"what": "write", "path": file["path"], "file": file})
        body = {"changes": changes, "expect": expect, "request": secrets.token_hex(8)}
        version = int(mounted_blocks.client().json("POST", self._route("VOLUME_COMMITS"), body)["version"])
        removed = [step for step in steps if isinstance(step, str)]
        self._committed(removed, [step for step in steps if isinstance(step, Told)], version)
        return version

    def _committed(self, removed: list[str], told: list[Told], version: int) -> None:
        known = self._known()
        for path in removed:
            del known[path]
            self._stamps.pop(path, None)
        for each in told:
            known[each.file["path"]] = each.file
            self._stamps[each.file["path"]] = each.stamp
        if version == self._version + 1:  # else others have committed meanwhile, which a reload brings
            self._version = version

    def _expected(self, expect: int) -> int:
        version = int(mounted_blocks.client().json("GET", self._route("VOLUME_HEAD"))["version"])
        if version != expect:
            raise ConflictError(f"the volume is at version {version}, not {expect}")
        return version

    def _stored_files(self, paths: list[str], changed: Changed) -> list[Told]:
        """Store what is in them: of small files some at once, of a large one some of its blocks."""
        from squall.http_api.storage import BLOCK_BYTES

        small = [path for path in paths if changed.files[path].size <= BLOCK_BYTES]
        large = [path for path in paths if changed.files[path].size > BLOCK_BYTES]
        told = gather([functools.partial(self._told, path) for path in small], BLOCKS_AT_ONCE)
        return [each for each in [*told, *map(self._told, large)] if each]

    def _is_new(self, path: str, stamp: Stamp) -> bool:
        return self._stamps.get(path) != stamp or path not in self._known() or path in self._unsure

    def _told(self, path: str) -> Optional[Told]:
        """Store its blocks; None if it is gone."""
        for left in reversed(range(READS)):
            try:
                told, same = mounted_blocks.read(self.mount.upper, path)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                    return None  # it is gone, or something else is in its place: the next commit sees that
                raise
            self._unsure.discard(path)
            if same or not left:
                return told
        return None

    def _links(self, changed: Changed) -> list[tuple[str, str]]:
        kept = [(path, inside(path, said, self.mount.path)) for path, said in changed.links.items()]
        return [(path, target) for path, target in kept if target is not None]

    def _strange(self, changed: Changed) -> dict[str, str]:
        kept = {path for path, _ in self._links(changed)}
        leading_out = {
            path: f"is a link to {said}, which is not in the volume"
            for path, said in changed.links.items()
            if path not in kept
        }
        return {**changed.strange, **leading_out}

    def _refuse(self, changed: Changed) -> None:
        strange = self._strange(changed)
        if strange:
            path, what = next(iter(strange.items()))
            more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
            raise RuntimeError(
                f"{self.label} was not committed: {path} {what}{more}. Volumes keep files and links between them: "
                "remove it, or write it somewhere else"
            )

    def _warn(self, changed: Changed) -> None:
        for path, what in self._strange(changed).items():
            if path not in self._warned:
                self._warned.add(path)
                say(f"{self.label}: {path} {what}; it is not kept")

    def _being_written(self) -> set[str]:
        """Files that are open to be written to, unless they have been for long: then a part is better than nothing."""
        now = time.monotonic()
        self._open_since = {path: self._open_since.get(path, now) for path in self._writing()}
        return {path for path, since in self._open_since.items() if now - since < HELD_OPEN_S}

    def _writing(self) -> set[str]:
        place = os.path.realpath(self.mount.path)
        return {path[len(place) + 1 :] for path, writes in open_files.under(place) if writes}

    # --- reload ---

    def reload(self) -> None:
        """See `Volume.reload`."""
        try:
            with self._lock:
                for path, _ in open_files.under(os.path.realpath(self.mount.path)):
                    raise RuntimeError(f"{self.label} cannot be reloaded: it is busy, {path} is open. Close it first")
                if not self.mount.read_only:
                    changed = upper.look(self.mount.upper)
                    self._warn(changed)
                    self._commit_all(changed)
                head = mounted_blocks.client().json("GET", self._route("VOLUME_HEAD"))
                if head["version"] != self._version:
                    self._take(self._listed(head["manifest"]))
                    self._version = head["version"]
        except (SquallError, OSError) as error:
            self._failed("reload", error)

    def _take(self, files: dict[str, File]) -> None:
        """Everything is fetched before anything changes; then only names do."""
        known = self._known()
        fetch = [path for path, file in files.items() if content_of(known.get(path)) != content_of(file)]
        stage = os.path.join(self.mount.inner, STAGE)
        shutil.rmtree(stage, ignore_errors=True)
        os.mkdir(stage)
        try:
            staged = {path: os.path.join(stage, str(number)) for number, path in enumerate(fetch)}
            gather(
                [functools.partial(mounted_blocks.fetch, files[path], place) for path, place in staged.items()],
                BLOCKS_AT_ONCE,
            )
            for path in known.keys() - files.keys():
                self._drop(path)
            for path, place in staged.items():
                self._move_in(place, path)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        self._files = files

    def _drop(self, path: str) -> None:
        place = os.path.join(self.mount.inner, path)
        self._stamps.pop(path, None)
        if os.path.isdir(place) and not os.path.islink(place):
            return  # a folder of others is there now
        try:
            os.unlink(place)
            while place := os.path.dirname(place):
                if place == self.mount.inner:
                    break
                os.rmdir(place)
        except OSError:
            pass  # it is gone, or its folder is not empty

    def _move_in(self, staged: str, path: str) -> None:
        place = self.mount.inner
        *above, name = path.split("/")
        for folder in above:
            place = os.path.join(place, folder)
            if os.path.islink(place) or os.path.isfile(place):
                os.unlink(place)
            if not os.path.isdir(place):
                os.mkdir(place)
        place = os.path.join(place, name)
        if os.path.isdir(place) and not os.path.islink(place):
            shutil.rmtree(place)
        os.replace(staged, place)
        if not self.mount.read_only:
            self._stamps[path] = upper.stamp(os.lstat(os.path.join(self.mount.upper, path)))

    # --- what is known ---

    def _known(self) -> dict[str, File]:
        """The files that this container has committed or been given."""
        if self._files is None:
            self._files = self._listed(self.mount.manifest)
        return self._files

    def _listed(self, manifest: str) -> dict[str, File]:
        if not manifest:
            return {}
        from squall.http_api.routes import Route

        body = bytearray()
        mounted_blocks.client().download(manifest.partition(":")[0], body.extend, body.clear, Route.VOLUME_BLOCK)
        prefix = f"{self.mount.sub_path}/" if self.mount.sub_path else ""
        files = {}
        for file in json.loads(body)["files"]:
            if file["path"].startswith(prefix):
                path = file["path"][len(prefix) :]
                files[path] = {**file, "path": path, "link": file.get("link", "")}
        return files

    def _remote(self, path: str) -> str:
        return f"{self.mount.sub_path}/{path}" if self.mount.sub_path else path

    def _route(self, name: str) -> str:
        from squall.http_api.routes import Route

        route: str = getattr(Route, name)
        return route.format(object=self.mount.id)

    def _failed(self, what: str, error: Exception) -> NoReturn:
        fix = f" ({error.hint})" if isinstance(error, SquallError) else ""
        raise RuntimeError(
            f"{what} of {self.label} failed: {error}{fix}. Nothing is lost: its files are as they were in this "
            "container, and the next commit tries again"
        ) from error


def say(text: str) -> None:
    """To the log of the container."""
    sys.stderr.write(f"squall: {text}\n")
