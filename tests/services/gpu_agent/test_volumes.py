"""Versions of volumes as folders of this machine: whole, verified, shared, and only what belongs there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from tests.support.eventually import eventually

from squall.errors import DataLossError, InvalidError, StorageFullError
from squall.http_api.protocol import blob_ref
from squall.http_api.storage import BLOCK_BYTES
from squall_gpu_agent.volumes import files as files_module
from squall_gpu_agent.volumes.files import Files
from squall_gpu_agent.volumes.mounts import folder_of
from squall_gpu_agent.volumes.trees import Trees
from squall_service.blobs import Blobs, FolderStore
from squall_service.volume_lists import parse


class Store:
    """A blob folder, and lists of files in it."""

    def __init__(self, folder: Path) -> None:
        self.blobs = Blobs(FolderStore(folder))

    async def put(self, content: bytes) -> str:
        return (await self.blobs.put_bytes(content))[0]

    async def file(self, path: str, content: bytes, mtime: float = 1.0) -> dict[str, Any]:
        pieces = [content[at : at + BLOCK_BYTES] for at in range(0, len(content), BLOCK_BYTES)]
        blocks = [await self.put(piece) for piece in pieces]
        return {"path": path, "size": len(content), "mtime": mtime, "mode": 0o4755, "blocks": blocks}

    async def manifest(self, *files: dict[str, Any]) -> str:
        body = json.dumps({"files": files}).encode()
        return blob_ref(await self.put(body), len(body))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "blobs")


@pytest.fixture
def trees(tmp_path: Path, store: Store) -> Trees:
    return Trees(tmp_path / "volumes", store.blobs, 0)


def link(path: str, target: str) -> dict[str, Any]:
    return {"path": path, "size": 0, "mtime": 1.0, "mode": 0o777, "blocks": [], "link": target}


async def test_a_version_is_a_folder_and_equal_files_are_one(store: Store, trees: Trees) -> None:
    large = bytes(range(256)) * (BLOCK_BYTES // 256) + b"rest"
    first = await store.manifest(await store.file("a/large", large), await store.file("old", b"1"))
    second = await store.manifest(await store.file("a/large", large), link("b/link", "../a/large"))

    one = await trees.use("vo-1", first)
    two = await trees.use("vo-1", second)

    assert (one / "a/large").read_bytes() == large
    assert (one / "a/large").stat().st_ino == (two / "a/large").stat().st_ino
    assert (two / "b/link").read_bytes() == large
    assert (one / "a/large").stat().st_mode & 0o7777 == 0o755, "no file of a volume changes who runs it"


async def test_what_is_mounted_stays_and_the_rest_goes(store: Store, trees: Trees, tmp_path: Path) -> None:
    manifests = [await store.manifest(await store.file(f"f{n}", b"%d" % n)) for n in range(3)]
    mounted, unused, newest = [await trees.use("vo-1", manifest) for manifest in manifests]
    trees.release(unused)
    trees.release(newest)
    await trees.tidy()
    assert (mounted.is_dir(), unused.is_dir(), newest.is_dir()) == (True, False, True)
    trees.release(mounted)
    await trees.tidy()
    assert (mounted.is_dir(), newest.is_dir()) == (False, True)
    again = Trees(tmp_path / "volumes", store.blobs, 0)
    assert (await again.use("vo-1", manifests[0]) / "f0").read_bytes() == b"0"


async def test_a_damaged_block_is_an_error_and_leaves_nothing(store: Store, trees: Trees, tmp_path: Path) -> None:
    manifest = await store.manifest(await store.file("a", b"content"))
    sha256 = hashlib.sha256(b"content").hexdigest()
    (tmp_path / "blobs" / sha256[:2] / sha256).write_bytes(b"contemt")
    with pytest.raises(DataLossError):
        await trees.use("vo-1", manifest)
    assert [each for each in (tmp_path / "volumes").rglob("*") if each.is_file()] == [tmp_path / "volumes" / "boot"]


async def test_a_version_that_nobody_wants_any_more_writes_to_no_other_file(store: Store, tmp_path: Path) -> None:
    """A thread that fetches runs on when its task is cancelled; the number of its file would be another file's."""
    began, go = threading.Event(), threading.Event()

    class Slow(FolderStore):
        def get(self, sha256: str, target: BinaryIO) -> None:
            if sha256 == block:
                began.set()
                go.wait(10)
            super().get(sha256, target)

    block = await store.put(b"stray")
    manifest = await store.manifest(await store.file("a", b"stray"))
    trees = Trees(tmp_path / "volumes", Blobs(Slow(tmp_path / "blobs")), 0)
    async with asyncio.TaskGroup() as group:
        using = group.create_task(trees.use("vo-1", manifest))
        await asyncio.to_thread(began.wait, 10)
        using.cancel()
    others = [os.open(tmp_path / f"other-{number}", os.O_RDWR | os.O_CREAT) for number in range(20)]
    go.set()
    await asyncio.get_running_loop().shutdown_default_executor()  # waits for the thread
    assert [os.fstat(other).st_size for other in others] == [0] * len(others)


async def test_the_cache_has_a_limit_and_makes_room(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = Trees(tmp_path / "volumes", store.blobs, 1)
    manifests = [await store.manifest(await store.file("f", bytes([n]) * 600_000)) for n in range(3)]
    used = [await trees.use(f"vo-{n}", manifest) for n, manifest in enumerate(manifests)]
    await trees.tidy()
    assert [tree.is_dir() for tree in used] == [True] * 3, "what is mounted does not count"
    for tree in used:
        trees.release(tree)
    await trees.use("vo-0", manifests[0])
    await trees.tidy()
    assert [tree.is_dir() for tree in used] == [True, False, True], "the volume that was not asked for for longest"
    monkeypatch.setattr(Files, "has_room", lambda *_: not used[2].exists())
    await trees.use("vo-1", manifests[1])
    assert [tree.is_dir() for tree in used] == [True, True, False], "the disk was full"


async def test_what_a_killed_agent_had_not_brought_in_full_is_removed(store: Store, tmp_path: Path) -> None:
    manifest = await store.manifest(await store.file("a", b"1"))
    await Trees(tmp_path / "volumes", store.blobs, 0).use("vo-1", manifest)
    folder = next((tmp_path / "volumes" / "files").iterdir())
    (folder / ".0123").write_bytes(b"half")
    await Trees(tmp_path / "volumes", store.blobs, 0).use("vo-1", manifest)
    assert [each.name[0] == "." for each in folder.iterdir()] == [False]


async def test_payloads_do_not_wait_for_a_volume_that_is_on_its_way(store: Store, tmp_path: Path) -> None:
    go = threading.Event()

    class Slow(FolderStore):
        def get(self, sha256: str, target: BinaryIO) -> None:
            if sha256 in blocks:
                go.wait(20)
            super().get(sha256, target)

    content = [b"%d" % number for number in range(20)]
    blocks = {hashlib.sha256(each).hexdigest() for each in content}
    manifest = await store.manifest(*[await store.file(f"{n}", each) for n, each in enumerate(content)])
    blobs = Blobs(Slow(tmp_path / "blobs"))
    trees = Trees(tmp_path / "volumes", blobs, 0)
    async with asyncio.TaskGroup() as group:
        using = group.create_task(trees.use("vo-1", manifest))
        await eventually(lambda: len(list((tmp_path / "volumes" / "files").glob("??/.*"))) == len(content))
        async with asyncio.timeout(10):
            await blobs.put_bytes(b"a result")
        assert not using.done()
        go.set()


async def test_many_ask_for_one_version_at_once(store: Store, trees: Trees) -> None:
    manifest = await store.manifest(*[await store.file(f"d/{n}", b"%d" % n) for n in range(20)])
    found = await asyncio.gather(*(trees.use("vo-1", manifest) for _ in range(10)))
    assert len(set(found)) == 1
    assert len(list((found[0] / "d").iterdir())) == 20


async def test_what_does_not_fit_on_the_disk_is_told_before_it_is_brought(
    store: Store, trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(StorageFullError, match="not on this machine yet"):
        await trees.use("vo-1", await store.manifest(await store.file("a", b"1")))


@pytest.mark.parametrize(
    "files",
    [
        [link("../a", "b")],
        [link("a/../../b", "c")],
        [link("/etc/passwd", "c")],
        [link("", "c")],
        [link("a", "/etc"), link("a/passwd", "x")],
        [link("a", "b"), link("a", "c")],
        [{"path": "a", "size": 5, "mtime": 0.0, "mode": 0, "blocks": []}],
        [{"path": "a"}],
        [{"path": "a", "size": 0, "mtime": 1e300, "mode": 0, "blocks": []}],
        [{"path": "a", "size": 0, "mtime": float("nan"), "mode": 0, "blocks": []}],
        [{"path": "\ud800", "size": 0, "mtime": 0.0, "mode": 0, "blocks": []}],
        [link("a", "\udcff")],
    ],
)
def test_a_list_that_leads_out_of_its_volume_is_refused(files: list[dict[str, Any]]) -> None:
    with pytest.raises((DataLossError, InvalidError)):
        parse(json.dumps({"files": files}).encode())


async def test_a_sub_path_never_goes_through_a_link(store: Store, trees: Trees, tmp_path: Path) -> None:
    manifest = await store.manifest(await store.file("real/a", b"1"), link("out", "../../../.."), link("in", "real"))
    tree = await trees.use("vo-1", manifest)
    assert folder_of(tree, "real", trees.nothing) == tree / "real"
    assert folder_of(tree, "not/there", trees.nothing) == trees.nothing
    for path in ("out", "in", "out/etc", "real/a", ".."):
        with pytest.raises(InvalidError):
            folder_of(tree, path, trees.nothing)
