"""Names: what is at which path, as far as the kernel knows it or this container has made it.

Folders are there while something is below them in the bucket; those that this container makes are remembered here
until then.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from zlib import crc32

from squall_gpu_agent.buckets import wire
from squall_gpu_agent.buckets.contents import Written
from squall_gpu_agent.buckets.store import Bucket, Entry

FRESH_S = 1.0
"""For so long what the bucket said is taken for true, as it is by the kernel."""
LISTINGS = 64


@dataclass(eq=False)
class Node:
    """A file or folder that the kernel knows by a number."""

    number: int
    path: str
    is_folder: bool
    entry: Entry | None = None
    """As the bucket had it; None for folders, and for files that are not stored yet."""
    looked_at: float = 0.0
    lookups: int = 0
    handles: int = 0
    written: Written | None = None
    is_gone: bool = False
    """Removed, or replaced by another: it has no name any more."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    """For what is in it."""


class Tree:
    """All nodes of one mount. Its methods may be called from any thread, and block while the bucket is asked."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._lock = threading.RLock()
        self._next = wire.ROOT + 1
        root = Node(wire.ROOT, "", True, lookups=1)
        self._nodes = {wire.ROOT: root}
        self._by_path = {"": root}
        self._made: set[str] = set()
        """Folders that were made here and may be empty."""
        self._listings: OrderedDict[str, tuple[float, dict[str, Entry | None]]] = OrderedDict()

    def node(self, number: int) -> Node:
        """One that the kernel was told of."""
        with self._lock:
            found = self._nodes.get(number)
        if found is None:
            raise OSError(errno.ESTALE, "no such node")
        return found

    def find(self, folder: Node, name: str) -> Node:
        """What is in a folder by that name; the kernel is told of it once more. Raises ENOENT."""
        path = join(folder.path, name)
        with self._lock:
            known = self._by_path.get(path)
            if known is not None and known.written is not None:
                known.lookups += 1
                return known
        entry, is_folder = self._ask(folder.path, name)
        return self._known(path, entry, is_folder)

    def _ask(self, folder: str, name: str) -> tuple[Entry | None, bool]:
        path = join(folder, name)
        with self._lock:
            made = path in self._made
            when, listing = self._listings.get(folder, (0.0, {}))
        if made:
            return None, True
        if time.monotonic() - when < FRESH_S:
            if name not in listing:
                raise FileNotFoundError(errno.ENOENT, path)
            return listing[name], listing[name] is None
        entry = self._bucket.find(path)
        if entry is None and not self._bucket.is_folder(path):
            raise FileNotFoundError(errno.ENOENT, path)
        return entry, entry is None

    def _known(self, path: str, entry: Entry | None, is_folder: bool) -> Node:
        with self._lock:
            node = self._by_path.get(path)
            if node is None or node.is_folder != is_folder:
                node = self._add(path, is_folder)
            node.lookups += 1
            if node.written is None:
                node.entry, node.looked_at = entry, time.monotonic()
            return node

    def _add(self, path: str, is_folder: bool) -> Node:
        node = Node(self._next, path, is_folder)
        self._next += 1
        replaced = self._by_path.get(path)
        if replaced is not None:
            replaced.is_gone = True
        self._nodes[node.number] = self._by_path[path] = node
        return node

    def look_again(self, node: Node) -> None:
        """At a file that the bucket was not asked about just now. Raises ENOENT."""
        with node.lock:
            if node.is_folder or node.written or node.is_gone or time.monotonic() - node.looked_at < FRESH_S:
                return
            entry = self._bucket.find(node.path)
            if entry is None:
                raise FileNotFoundError(errno.ENOENT, node.path)
            node.entry, node.looked_at = entry, time.monotonic()

    def forget(self, number: int, times: int) -> None:
        """The kernel does not know it any more so many times."""
        with self._lock:
            node = self._nodes.get(number)
            if node is None or number == wire.ROOT:
                return
            node.lookups -= times
            self._drop_unknown(node)

    def released(self, node: Node) -> None:
        """One handle less."""
        with self._lock:
            node.handles -= 1
            self._drop_unknown(node)

    def _drop_unknown(self, node: Node) -> None:
        if node.lookups <= 0 and node.handles <= 0 and node.written is None:
            self._nodes.pop(node.number, None)
            if self._by_path.get(node.path) is node:
                del self._by_path[node.path]

    # --- changes ---

    def create(self, folder: Node, name: str) -> Node:
        """A file that is not stored yet; whoever asks gives it content."""
        with self._lock:
            node = self._known(join(folder.path, name), None, False)
            self.changed(folder.path)
            return node

    def make_folder(self, folder: Node, name: str) -> Node:
        """Raises EEXIST."""
        path = join(folder.path, name)
        try:
            self._ask(folder.path, name)
        except FileNotFoundError:
            with self._lock:
                self._made.add(path)
                self.changed(folder.path)
                return self._known(path, None, True)
        raise FileExistsError(errno.EEXIST, path)

    def remove_folder(self, folder: Node, name: str) -> None:
        """Raises ENOTEMPTY, ENOENT."""
        path = join(folder.path, name)
        _, is_folder = self._ask(folder.path, name)
        if not is_folder:
            raise NotADirectoryError(errno.ENOTDIR, path)
        with self._lock:
            below = f"{path}/"
            unstored = any(node.written and node.path.startswith(below) for node in self._by_path.values())
            made = any(each.startswith(below) for each in self._made)
        if unstored or made or self._bucket.is_folder(path):
            raise OSError(errno.ENOTEMPTY, path)
        with self._lock:
            self._take_name(path)
            self._made.discard(path)
            self.changed(folder.path)

    def take_name(self, path: str) -> None:
        """What is there has no name any more."""
        with self._lock:
            self._take_name(path)
            self.changed(os.path.dirname(path))

    def _take_name(self, path: str) -> None:
        folder = os.path.dirname(path)
        if folder:
            self._made.add(folder)  # as elsewhere, it is there until it is removed
        node = self._by_path.pop(path, None)
        if node is not None:
            node.is_gone = True
            self._drop_unknown(node)

    def move(self, node: Node, path: str) -> None:
        """A file has another name now."""
        with self._lock:
            self._take_name(path)
            if self._by_path.get(node.path) is node:
                del self._by_path[node.path]
            if left := os.path.dirname(node.path):
                self._made.add(left)
            self.changed(left)
            node.path, self._by_path[path] = path, node
            self.changed(os.path.dirname(path))

    def changed(self, folder: str) -> None:
        """What the bucket said of a folder does not hold any more."""
        with self._lock:
            self._listings.pop(folder, None)
            if folder and folder not in self._made:
                self._listings.pop(os.path.dirname(folder), None)

    # --- folders ---

    def entries(self, path: str) -> Iterator[tuple[int, str, bool]]:
        """What is in a folder: (number, name, whether a folder)."""
        listing = dict(self._listing(path))
        above = f"{path}/" if path else ""
        with self._lock:
            unstored = [node.path for node in self._by_path.values() if node.written and node.path.startswith(above)]
            made = [each for each in self._made if each.startswith(above)]
            for each in (*unstored, *made):
                name, _, below = each[len(above) :].partition("/")
                listing[name] = listing.get(name) if not below and each in unstored else None
            folders = {each[len(above) :].partition("/")[0] for each in unstored if "/" in each[len(above) :]}
            files = {each[len(above) :] for each in unstored if "/" not in each[len(above) :]}
        for name, entry in sorted(listing.items()):
            is_folder = name in folders or (entry is None and name not in files)
            yield 1 << 62 | crc32(join(path, name).encode("utf-8", "surrogateescape")), name, is_folder

    def _listing(self, path: str) -> dict[str, Entry | None]:
        with self._lock:
            when, listing = self._listings.get(path, (0.0, {}))
        if time.monotonic() - when < FRESH_S:
            return listing
        began = time.monotonic()
        listing = self._bucket.list(path)
        with self._lock:
            self._listings.pop(path, None)
            self._listings[path] = (began, listing)
            while len(self._listings) > LISTINGS:
                self._listings.popitem(last=False)
        return listing


def join(folder: str, name: str) -> str:
    """The path of a name in a folder."""
    return f"{folder}/{name}" if folder else name
