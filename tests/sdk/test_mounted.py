"""Commits and reloads of a mounted volume, on the upper layer of a mount alone: a plain folder in place of it."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.fake_gateway import FakeGateway

from squall import Volume, mounted, mounted_blocks, mounted_volume, session, upper
from squall.client import Client
from squall.errors import ConflictError, ExecutionError, InvalidError, StorageFullError
from squall.http_api.storage import BLOCK_BYTES
from squall.http_api.volume_links import inside
from squall.mounted_volume import Mounted
from squall.spec import check_mount_point
from squall_runner.volumes import Mount

COMMITS = "POST /v1/volumes/vo-1/commits"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "volume"
    made.mkdir()
    return made


@pytest.fixture
def volume(folder: Path, connected: session.Session) -> Mounted:
    return mount(folder)


def mount(folder: Path, **more: object) -> Mounted:
    fields = {"path": str(folder), "id": "vo-1", "name": "v", "environment": "main", "read_only": False}
    fields |= {"sub_path": "", "version": 0, "manifest": "", "upper": str(folder), "inner": str(folder), **more}
    return Mounted(Mount(**fields))  # type: ignore[arg-type]


def contents(gateway: FakeGateway) -> dict[str, bytes]:
    return {path: b"".join(gateway.blobs[b] for b in f["blocks"]) for path, f in gateway.volume_files.items()}


def commits(gateway: FakeGateway) -> int:
    return gateway.paths("POST").count("/v1/volumes/vo-1/commits")


def test_only_what_changed_is_sent(gateway: FakeGateway, volume: Mounted, folder: Path) -> None:
    (folder / "a").write_bytes(b"1")
    (folder / "deep").mkdir()
    (folder / "deep" / "b").write_bytes(b"2")
    assert volume.commit() == 1
    assert volume.commit() == 1
    volume.commit_behind()
    (folder / "a").write_bytes(b"3")
    uploads = len(gateway.paths("PUT"))
    assert volume.commit() == 2
    assert contents(gateway) == {"a": b"3", "deep/b": b"2"}
    assert (len(gateway.paths("PUT")) - uploads, commits(gateway)) == (1, 2)


def test_a_commit_that_fails_loses_nothing(gateway: FakeGateway, volume: Mounted, folder: Path) -> None:
    (folder / "a").write_bytes(b"1")
    gateway.errors[COMMITS] = [StorageFullError("no room", fix="Make some.")]
    with pytest.raises(RuntimeError, match=r"no room.*Make some.*Nothing is lost"):
        volume.commit()
    assert (folder / "a").read_bytes() == b"1"
    assert volume.commit() == 1
    assert contents(gateway) == {"a": b"1"}


def test_the_last_commit_is_tried_again(
    gateway: FakeGateway, volume: Mounted, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounted_volume, "FINAL_WAIT_S", 0.0)
    (folder / "a").write_bytes(b"1")
    gateway.errors[COMMITS] = [StorageFullError("no room") for _ in range(mounted_volume.FINAL_TRIES - 1)]
    volume.finish()
    assert contents(gateway) == {"a": b"1"}


def test_the_last_commit_waits_for_others_turns(
    gateway: FakeGateway, volume: Mounted, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounted_volume, "FINAL_WAIT_S", 0.0)
    (folder / "a").write_bytes(b"1")
    gateway.errors[COMMITS] = [ConflictError("changed by others")]
    volume.finish()
    assert contents(gateway) == {"a": b"1"}


def test_a_file_that_grows_while_it_is_read_has_an_end(
    gateway: FakeGateway, volume: Mounted, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, stored = folder / "log", mounted_blocks.store
    log.write_bytes(b"x" * BLOCK_BYTES)

    def and_grown(client: Client, piece: bytes) -> str:
        with log.open("ab") as file:
            file.write(b"y" * BLOCK_BYTES)
        return stored(client, piece)

    monkeypatch.setattr(mounted_blocks, "store", and_grown)
    volume.commit()
    assert len(contents(gateway)["log"]) < log.stat().st_size
    monkeypatch.setattr(mounted_blocks, "store", stored)
    volume.commit()
    assert len(contents(gateway)["log"]) == log.stat().st_size


def test_an_answer_that_is_lost_is_one_commit(gateway: FakeGateway, volume: Mounted, folder: Path) -> None:
    (folder / "a").write_bytes(b"1")
    gateway.break_next.append(COMMITS)
    volume.commit()
    assert contents(gateway) == {"a": b"1"}


def test_commits_that_expect_a_version(gateway: FakeGateway, volume: Mounted, folder: Path) -> None:
    with pytest.raises(ConflictError):
        volume.commit(expect=7)
    assert volume.commit(expect=0) == 0
    (folder / "a").write_bytes(b"1")
    with pytest.raises(ConflictError):
        volume.commit(expect=7)
    assert volume.commit(expect=0) == 1


def test_more_changes_than_a_version_takes_are_several(
    gateway: FakeGateway, volume: Mounted, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounted_volume, "CHANGES_AT_ONCE", 3)
    for number in range(7):
        (folder / str(number)).touch()
    with pytest.raises(RuntimeError, match="at most 3"):
        volume.commit(expect=0)
    assert volume.commit() == 3
    assert len(gateway.volume_files) == 7


def test_a_file_that_is_being_written_waits_for_its_end(gateway: FakeGateway, volume: Mounted, folder: Path) -> None:
    (folder / "done").write_bytes(b"1")
    with (folder / "half").open("wb") as half:
        half.write(b"1")
        half.flush()
        volume.commit_behind()
        assert set(gateway.volume_files) == {"done"}
        half.write(b"2")
    volume.commit_behind()
    assert contents(gateway) == {"done": b"1", "half": b"12"}


def test_memory_that_is_mapped_changes_without_a_trace_and_is_seen(
    gateway: FakeGateway, volume: Mounted, folder: Path
) -> None:
    (folder / "mapped").write_bytes(b"0" * 4096)
    with (folder / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), 4096) as memory:
        for turn in (b"1", b"2"):
            memory[0:1] = turn
            os.utime(folder / "mapped", (1, 1))
            volume.commit()
        memory[0:1] = b"3"
        volume.commit()
        assert contents(gateway)["mapped"][:1] == b"3"
        version = volume.commit()
        memory[0:1] = b"4"
    volume.finish()
    assert contents(gateway)["mapped"][:1] == b"4"
    assert volume.commit() == version + 1, "what was read again and is the same is no change"


def test_a_name_that_is_no_text_is_left_out_and_keeps_nothing_else_out(
    gateway: FakeGateway, volume: Mounted, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a").write_bytes(b"1")
    with open(os.fsencode(folder) + b"/bad-\xff", "w"):
        pass
    os.symlink(b"to-\xff", os.fsencode(folder) + b"/link")
    os.mkdir(os.fsencode(folder) + b"/folder-\xff")
    volume.commit_behind()
    volume.finish()
    assert contents(gateway) == {"a": b"1"}
    told = capsys.readouterr().err
    assert told.count("not UTF-8") == 3
    assert "bad-\\xff has a name" in told
    with pytest.raises(RuntimeError, match="not UTF-8"):
        volume.commit()


def test_times_and_modes_that_no_other_machine_has_are_made_ordinary(
    gateway: FakeGateway, volume: Mounted, folder: Path
) -> None:
    (folder / "a").write_bytes(b"1")
    volume.commit()
    gateway.volume_files = {"b": {**gateway.volume_files["a"], "path": "b", "mode": 0o104755}}
    gateway.volume_version += 1
    volume.reload()
    assert (folder / "b").stat().st_mode & 0o7777 == 0o755


def test_trouble_of_one_volume_keeps_no_other_from_its_last_commit(
    gateway: FakeGateway,
    folder: Path,
    connected: session.Session,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken, whole = mount(folder / "not-there"), mount(folder)
    monkeypatch.setattr(broken, "_lock", None)
    monkeypatch.setattr(mounted, "_mounted", lambda: [broken, whole])
    (folder / "a").write_bytes(b"1")
    mounted.commit_behind()
    assert contents(gateway) == {"a": b"1"}
    (folder / "a").write_bytes(b"2")
    mounted.finish()
    assert contents(gateway) == {"a": b"2"}
    assert "the last commit failed" in capsys.readouterr().err


def test_what_a_container_removes_of_its_own_is_removed(
    gateway: FakeGateway, volume: Mounted, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overlay leaves no trace of the removal of what only its upper layer had."""
    (folder / "deep").mkdir()
    for name in ("first", "renamed", "deep/a"):
        (folder / name).write_bytes(b"1")
    (folder / "link").symlink_to("first")
    volume.commit()
    (folder / "link").unlink()
    (folder / "first").unlink()
    (folder / "renamed").rename(folder / "new")
    shutil.rmtree(folder / "deep")
    volume.commit_behind()
    assert set(gateway.volume_files) == {"new"}
    for name in ("was", "target"):
        (folder / name).mkdir()
        (folder / name / "a").write_bytes(name.encode())
    volume.commit()
    shutil.rmtree(folder / "was")
    (folder / "was").symlink_to("target")
    volume.reload()
    assert set(gateway.volume_files) == {"new", "was", "target/a"}
    assert (folder / "target" / "a").read_bytes() == b"target"


def test_what_cannot_be_looked_at_is_not_taken_for_removed(
    gateway: FakeGateway, volume: Mounted, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "a").write_bytes(b"1")
    volume.commit()
    scandir = os.scandir

    def too_many_open(path: str) -> Any:
        if path.endswith("deep"):
            raise OSError(errno.EMFILE, "Too many open files")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", too_many_open)
    (folder / "b").write_bytes(b"1")
    volume.commit_behind()
    assert set(gateway.volume_files) == {"deep/a", "b"}


def test_strange_things_are_left_out_in_the_background(
    gateway: FakeGateway, volume: Mounted, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a").write_bytes(b"1")
    os.mkfifo(folder / "pipe")
    (folder / "out").symlink_to("/etc/passwd")
    (folder / "in").symlink_to(folder / "a")
    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(folder)
        bound.bind("bound")
        os.chdir("/")
        volume.commit_behind()
        volume.commit_behind()
    told = capsys.readouterr().err
    assert {path: file["link"] for path, file in gateway.volume_files.items()} == {"a": "", "in": "a"}
    assert [told.count(word) for word in ("pipe is a named pipe", "out is a link to /etc/passwd", "a socket")] == [
        1
    ] * 3
    with pytest.raises(RuntimeError, match="was not committed"):
        volume.commit()


def test_a_reload_that_fails_changes_nothing(gateway: FakeGateway, volume: Mounted, folder: Path) -> None:
    (folder / "a").write_bytes(b"1")
    (folder / "gone").write_bytes(b"1")
    volume.commit()
    newer = {**gateway.volume_files["a"], "blocks": ["0" * 64]}
    gateway.volume_files = {"a": newer}
    gateway.volume_version += 1
    with pytest.raises(RuntimeError, match="reload of volume v"):
        volume.reload()
    assert sorted(path.name for path in folder.iterdir()) == ["a", "gone"]
    assert (folder / "a").read_bytes() == b"1"


def test_a_reload_brings_files_folders_and_links_and_takes_away(
    gateway: FakeGateway, volume: Mounted, folder: Path, tmp_path: Path, connected: session.Session
) -> None:
    for name in ("same", "was-file", "was-folder/x", "gone/y"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    volume.commit()
    content = gateway.volume_files["same"]
    gateway.volume_files = {
        path: {**content, "path": path} for path in ("same", "was-file/now/z", "was-folder", "new/deep/n")
    }
    gateway.volume_files["link"] = {**content, "path": "link", "size": 0, "blocks": [], "link": "same"}
    gateway.volume_version += 1

    volume.reload()

    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"same", "was-file/now/z", "was-folder", "new/deep/n", "link"}
    assert os.readlink(folder / "link") == "same"
    before = commits(gateway)
    volume.commit()
    assert commits(gateway) == before, "what came by a reload is no change"


def test_an_upper_layer_tells_what_is_gone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "new").touch()
    (tmp_path / "file").touch()
    changed = upper.look(str(tmp_path))
    changed.gone.add("removed")
    changed.opaque.add("folder")
    hidden = [
        p for p in ("folder/old", "folder", "removed", "removed/x", "file/x", "other", "file") if changed.hides(p)
    ]
    assert hidden == ["folder/old", "folder", "removed", "removed/x", "file/x"]


@pytest.mark.parametrize(
    ("path", "target", "kept"),
    [
        ("a/link", "../b", "../b"),
        ("a/link", "/data/b", "../b"),
        ("link", "/data/b", "b"),
        ("link", "/data/../etc", None),
        ("link", "/database", None),
        ("link", "../b", None),
        ("a/link", "../../b", None),
        ("a/link", "x/../../../b", None),
        ("link", "/etc", None),
    ],
)
def test_links_are_kept_within_the_volume(path: str, target: str, kept: str | None) -> None:
    assert inside(path, target, "/data") == kept


@pytest.mark.parametrize(
    "path", ["/", "/run", "/proc", "/sys/fs", "/run/squall/x", "data", "/a/../b", "/x\udcff", "/x/"]
)
def test_places_of_the_container_itself_are_no_mount_points(path: str) -> None:
    with pytest.raises(InvalidError):
        check_mount_point(path)
    check_mount_point("/running")


def test_a_mount_that_is_read_only_has_nothing_to_commit(folder: Path, connected: session.Session) -> None:
    with pytest.raises(RuntimeError, match="read-only"):
        mount(folder, read_only=True).commit()


def test_a_volume_that_is_not_mounted_says_so() -> None:
    with pytest.raises(ExecutionError, match="not mounted here"):
        Volume.from_id("vo-9").commit()
