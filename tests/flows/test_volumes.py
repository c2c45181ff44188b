"""Volumes through two gateways: versions are whole, changes of writers meet, a killed writer leaves no trace."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from tests.flows.conftest import FORMS, nothing_was_forbidden
from tests.support.platform import Platform

import squall
from squall import exception, session

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with FORMS["processes"]() as started:
        yield started
        nothing_was_forbidden(started)


@pytest.fixture
def volume(client: Platform) -> Iterator[squall.Volume]:
    with squall.Volume.ephemeral() as made:
        yield made


def put(volume: squall.Volume, force: bool = False, expect: int | None = None, **files: bytes) -> int | None:
    with volume.batch_upload(force=force, expect=expect) as batch:
        for name, content in files.items():
            batch.put_file(io.BytesIO(content), name.replace("__", "/"))
    return batch.version


def content(volume: squall.Volume, path: str) -> bytes:
    return b"".join(volume.read_file(path))


def paths(volume: squall.Volume) -> list[str]:
    return [entry.path for entry in volume.iterdir() if entry.type == "file"]


def test_files_come_back_as_they_were(volume: squall.Volume, tmp_path: Path) -> None:
    large = random.Random(1).randbytes(20_000_000)  # three blocks
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "one").write_bytes(b"1")
    (tmp_path / "tree" / "sub" / "two").write_bytes(b"22")
    (tmp_path / "large").write_bytes(large)

    with volume.batch_upload() as batch:
        batch.put_directory(tmp_path / "tree", "/data")
        batch.put_file(tmp_path / "large", "/models/")
        batch.put_file(io.BytesIO(b""), "empty")

    assert paths(volume) == ["data/one", "data/sub/two", "empty", "models/large"]
    assert content(volume, "/models/large") == large
    assert content(volume, "empty") == b""
    with open(tmp_path / "back", "w+b") as file:
        assert volume.read_file_into_fileobj("data/sub/two", file) == 2
    assert (tmp_path / "back").read_bytes() == b"22"
    entry = next(entry for entry in volume.listdir("/models") if entry.type == "file")
    assert (entry.path, entry.size) == ("models/large", len(large))
    assert (entry.type, entry.type.name, str(entry.type)) == (squall.volume.FileEntryType.FILE, "FILE", "file")
    with pytest.raises(FileNotFoundError):
        list(volume.read_file("data"))


def test_a_block_that_is_there_is_not_stored_again(client: Platform, volume: squall.Volume) -> None:
    block = random.Random(2).randbytes(8 << 20)
    put(volume, first=block + b"a")
    before = size_of(client.data / "blobs")
    put(volume, second=block + b"b")
    assert size_of(client.data / "blobs") - before < 100_000


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_a_block_is_a_version_in_full_or_not_at_all(volume: squall.Volume) -> None:
    assert put(volume, a=b"1") == 1
    with pytest.raises(FileExistsError):
        put(volume, b=b"2", a=b"again")
    with pytest.raises(ZeroDivisionError):
        put_and_fail(volume)
    assert (paths(volume), volume.current_version()) == (["a"], 1)
    assert put(volume, force=True, a=b"new", b=b"2") == 2
    assert content(volume, "a") == b"new"


def put_and_fail(volume: squall.Volume) -> None:
    with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"3"), "c")
        raise ZeroDivisionError


def test_what_no_version_needs_is_found_and_left_for_its_readers(client: Platform, volume: squall.Volume) -> None:
    def gc(*options: str) -> dict[str, int]:
        [found] = json.loads(client.squall("volume", "gc", "--json", *options).stdout)
        return dict(found)

    put(volume, a=random.Random(7).randbytes(300_000))
    before = gc("--dry-run")
    volume.remove_file("a")
    after = gc()
    assert after["removed"] == 0
    assert after["waiting_bytes"] - before["waiting_bytes"] >= 300_000
    assert before["needed_bytes"] - after["needed_bytes"] >= 300_000


def test_a_writer_that_is_killed_leaves_the_version_before(client: Platform, volume: squall.Volume) -> None:
    put(volume, a=b"1")
    program = f"""
import io, os, squall
volume = squall.Volume.from_id({volume.object_id!r})
with volume.batch_upload(force=True) as batch:
    batch.put_file(io.BytesIO(b"2" * 9_000_000), "a")
    batch.put_file(io.BytesIO(b"2"), "b")
    os.kill(os.getpid(), 9)
"""
    writer = client.popen(sys.executable, "-c", program)
    writer.communicate(timeout=60)
    assert writer.returncode == -9
    assert (paths(volume), content(volume, "a"), volume.current_version()) == (["a"], b"1", 1)


def test_different_files_of_many_writers_meet_and_the_same_file_is_one_of_theirs(volume: squall.Volume) -> None:
    def write(number: int) -> None:
        put(volume, force=True, **{f"own_{number}": b"x", "shared": str(number).encode() * 100_000})

    writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)

    assert paths(volume) == [*(f"own_{number}" for number in range(8)), "shared"]
    assert content(volume, "shared") in {str(number).encode() * 100_000 for number in range(8)}
    assert volume.current_version() == 8


def test_a_commit_that_expects_another_version_is_refused(volume: squall.Volume) -> None:
    put(volume, a=b"1")
    with pytest.raises(exception.ConflictError, match="version 1, not 0"):
        put(volume, expect=0, b=b"2")
    assert put(volume, expect=1, b=b"2") == 2


def test_a_repeated_commit_is_one(volume: squall.Volume) -> None:
    put(volume, a=b"1")
    here = session.current()
    body = {"changes": [{"what": "copy", "path": "b", "sources": ["a"]}], "request": "r1"}
    path = f"/v1/volumes/{volume.object_id}/commits"
    assert [here.client.json("POST", path, body)["version"] for _ in range(3)] == [2, 2, 2]


def test_files_are_removed_and_copied_without_moving_bytes(volume: squall.Volume) -> None:
    put(volume, dir__a=b"1", dir__sub__b=b"2", c=b"3")
    volume.copy_files(["dir"], "copy", recursive=True)
    volume.remove_file("dir", recursive=True)
    volume.remove_file("c")

    assert paths(volume) == ["copy/a", "copy/sub/b"]
    assert content(volume, "copy/sub/b") == b"2"
    with pytest.raises(FileNotFoundError):
        volume.remove_file("c")
    with pytest.raises(exception.NotFoundError, match="has no c"):  # either name catches it
        volume.remove_file("c")
    with pytest.raises(exception.InvalidError, match="is a folder"):
        volume.remove_file("copy")
    with pytest.raises(FileNotFoundError):
        volume.listdir("dir")


def test_a_damaged_block_is_an_error_and_never_wrong_bytes(client: Platform, volume: squall.Volume) -> None:
    data = random.Random(3).randbytes(100_000)
    put(volume, a=data)
    [stored] = [f for f in (client.data / "blobs").rglob("*") if hashlib.sha256(data).hexdigest() in str(f)]
    os.chmod(stored, 0o644)
    with open(stored, "r+b") as file:
        file.seek(500)
        byte = file.read(1)
        file.seek(500)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(exception.DataLossError):
        content(volume, "a")


@pytest.mark.parametrize("path", ["../a", "a/../../b", "a\0b", "x" * 300])
def test_paths_outside_are_refused(volume: squall.Volume, path: str) -> None:
    for use in (
        lambda: volume.listdir(path),
        lambda: content(volume, path),
        lambda: volume.remove_file(path),
        lambda: volume.copy_files(["a"], path),
        lambda: put(volume, **{path: b"x"}),
    ):
        with pytest.raises((exception.InvalidError, FileNotFoundError)):
            use()
    assert volume.current_version() == 0


def test_a_volume_of_another_kind_or_nowhere_is_not_found(client: Platform, volume: squall.Volume) -> None:
    for wrong in ("vo-nowhere", "vo-*", "di-1"):
        with pytest.raises(exception.NotFoundError):
            squall.Volume.from_id(wrong).listdir()
    with pytest.raises(exception.NotFoundError):
        squall.Volume.from_name("nowhere").listdir()


def test_the_commands(client: Platform, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("hello")
    client.squall("volume", "create", "cli")
    client.squall("volume", "put", "cli", tmp_path / "folder", "/data")
    assert "data/a.txt" in client.squall("volume", "ls", "cli", "/data").stdout
    assert client.squall("volume", "get", "cli", "data/a.txt", "-").stdout == "hello"
    client.squall("volume", "put", "cli", tmp_path / "folder", "/into/")
    client.squall("volume", "put", "cli", f"{tmp_path}/folder/", "/content/")
    assert {"into/folder/a.txt", "content/a.txt"} <= set(paths(squall.Volume.from_name("cli")))
    refused = client.squall("volume", "put", "cli", tmp_path / "folder", "/data", check=False)
    assert "--force" in refused.stderr
    client.squall("volume", "put", "-f", "cli", tmp_path / "folder" / "a.txt", "b.txt")
    for words in (
        ("put", "cli", tmp_path / "folder" / "a.txt", "../out"),
        ("rm", "cli", "../b.txt"),
        ("ls", "cli", "/.."),
    ):
        outside = client.squall("volume", *words, check=False)
        assert outside.returncode
        assert "is not a path in a volume" in outside.stderr
    assert squall.Volume.from_name("cli").info().created_at <= datetime.now().astimezone()
    client.squall("volume", "cp", "-r", "cli", "data", "copy")
    client.squall("volume", "rm", "cli", "data/a.txt")
    client.squall("volume", "get", "cli", "copy", tmp_path / "back/")
    assert (tmp_path / "back" / "copy" / "a.txt").read_text() == "hello"
    assert "no data" in client.squall("volume", "rm", "cli", "data", check=False).stderr
    client.squall("volume", "rename", "cli", "cli-2")
    assert "cli-2" in client.squall("volume", "list").stdout
    assert client.squall("volume", "get", "cli-2", "b.txt", "-").stdout == "hello"
    client.squall("volume", "delete", "cli-2", "-y")
    assert "Error [not_found]: " in client.squall("volume", "ls", "cli-2", check=False).stderr
