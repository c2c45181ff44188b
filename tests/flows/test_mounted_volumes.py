"""Volumes as folders of containers, on processes: what they write others see; a kill leaves nothing half."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.flows.conftest import FORMS, PROGRAMS, nothing_was_forbidden
from tests.support.platform import Platform, eventually

import squall
from squall import exception

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "getxattr"), reason="Linux only")]


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with FORMS["one-process"]() as started:
        started.squall("deploy", PROGRAMS / "mounted.py")
        yield started
        nothing_was_forbidden(started)


@pytest.fixture
def shared(client: Platform) -> squall.Volume:
    return squall.Volume.from_name("shared")


def function(name: str) -> squall.Function:
    return squall.Function.from_name("mounted", name)


@pytest.fixture
def writer(client: Platform) -> squall.Obj:
    return squall.Cls.from_name("mounted", "Writer")()


def put(volume: squall.Volume, **files: str) -> None:
    with volume.batch_upload(force=True) as batch:
        for name, text in files.items():
            batch.put_file(io.BytesIO(text.encode()), name.replace("__", "/") + ".txt")


def seen_by_a_container_that_starts_now(path: str) -> dict[str, str]:
    """One that was started for an earlier call, and has waited since, sees the version of then: it is used up."""

    def look() -> dict[str, str] | None:
        seen: dict[str, str] = function("in_new_container").remote()
        return seen if path in seen else None

    return eventually(look, within_s=30)


def content(volume: squall.Volume, path: str) -> str:
    return b"".join(volume.read_file(path)).decode()


def test_what_a_container_commits_clients_and_new_containers_see(shared: squall.Volume, writer: squall.Obj) -> None:
    put(shared, a="from the client", old="1")
    version = shared.current_version()

    assert writer.write.remote({"b.txt": "b", "deep/er/c.txt": "c"}, remove=("old.txt",)) == version + 1

    assert content(shared, "deep/er/c.txt") == "c"
    writer.write.remote({}, remove=("deep/er/c.txt",))
    writer.write.remote({"deep/er/c.txt": "c", "mine.txt": "1"})
    writer.write.remote({}, remove=("mine.txt",))
    for removed in ("old.txt", "mine.txt"):
        with pytest.raises(FileNotFoundError):
            content(shared, removed)
    seen = seen_by_a_container_that_starts_now("b.txt")
    assert seen == {"a.txt": "from the client", "b.txt": "b", "deep/er/c.txt": "c"}
    assert not os.path.exists("/data/b.txt"), "the machine's own folders stay as they were"


def test_a_running_container_sees_its_version_until_it_reloads(shared: squall.Volume, writer: squall.Obj) -> None:
    put(shared, a="1", b="1", folder__c="1")
    writer.reload.remote()
    put(shared, a="2", new__d="2")
    shared.remove_file("folder", recursive=True)

    before = writer.see.remote()
    assert (before["a.txt"], before["folder/c.txt"], "new/d.txt" in before) == ("1", "1", False)
    after = writer.reload.remote()
    assert (after["a.txt"], "folder/c.txt" in after, after["new/d.txt"]) == ("2", False, "2")
    assert writer.see.remote() == after
    version = shared.current_version()
    assert writer.write.remote({}) == version, "what a reload brought is no change of the container's"


def test_a_reload_keeps_what_was_changed_and_other_containers_files(shared: squall.Volume, writer: squall.Obj) -> None:
    put(shared, a="1", same="1")
    writer.reload.remote()
    put(shared, theirs="client", same="client")
    writer.write.remote({"mine.txt": "container", "same.txt": "container"}, commit=False)

    seen = writer.reload.remote()

    assert (seen["mine.txt"], seen["theirs.txt"]) == ("container", "client")
    assert seen["same.txt"] == content(shared, "same.txt") == "container", "the later commit of a file wins, in whole"


def test_a_forked_child_commits_what_is_there(shared: squall.Volume, writer: squall.Obj) -> None:
    assert writer.commit_in_a_child.remote() == 0
    assert [content(shared, f"{name}.txt") for name in ("before", "child", "after")] == ["before", "child", "after"]


def test_a_handle_can_have_other_volumes(client: Platform) -> None:
    with squall.Volume.ephemeral() as other:
        put(other, other="here")
        assert function("in_new_container").with_options(volumes={"/data": other}).remote() == {"other.txt": "here"}
        assert function("in_new_container").with_options(volumes={}, memory=256).remote() != {"other.txt": "here"}
    with pytest.raises(exception.NotFoundError, match="vo-nowhere"):
        function("in_new_container").with_options(volumes={"/data": squall.Volume.from_id("vo-nowhere")}).remote()


def test_a_volume_that_was_deleted_while_it_was_mounted_is_told(client: Platform) -> None:
    told = function("commit_after_removal").remote()
    assert "volume doomed at /data" in told
    assert "(any more)" in told


def test_a_reload_with_open_files_is_refused(shared: squall.Volume, writer: squall.Obj) -> None:
    put(shared, a="1")
    writer.reload.remote()
    told = writer.reload_with_an_open_file.remote()
    assert "busy" in told
    assert "/data/a.txt is open" in told


def test_a_commit_that_expects_another_version_is_refused_in_containers_too(
    shared: squall.Volume, writer: squall.Obj
) -> None:
    put(shared, a="1")
    writer.reload.remote()
    version = shared.current_version()
    assert f"version {version}, not {version - 1}" in writer.commit_expecting.remote(version - 1)
    assert writer.commit_expecting.remote(version) == "committed"


@pytest.mark.parametrize(
    ("what", "told"),
    [("pipe", "a named pipe"), ("/etc/passwd", "not in the volume"), ("../../etc/passwd", "not in the volume")],
)
def test_what_no_volume_can_keep_is_refused_by_name(writer: squall.Obj, what: str, told: str) -> None:
    refused = writer.commit_with.remote(what)
    assert "strange" in refused
    assert told in refused


def test_links_within_a_volume_are_kept(shared: squall.Volume, writer: squall.Obj) -> None:
    writer.reload.remote()
    assert writer.link.remote() == ("sub/target.txt", "/data/sub/target.txt")

    seen = seen_by_a_container_that_starts_now("relative")
    assert seen["relative"] == seen["absolute"] == "linked"
    assert content(shared, "absolute") == "linked"
    assert {e.path: e.type for e in shared.iterdir("/")}["relative"] == "symlink"


def test_a_mount_that_is_read_only_can_be_reloaded_and_not_written(shared: squall.Volume) -> None:
    put(shared, a="1")
    before, told, after = function("read_only").remote()
    assert (before["a.txt"], told, after) == ("1", "Read-only file system", before)


def test_a_sub_path_is_all_that_is_seen_and_written(shared: squall.Volume) -> None:
    put(shared, parts__one__there="1", parts__two__other="2")
    assert function("part").remote() == ["mine.txt", "there.txt"]
    eventually(lambda: content_or_none(shared, "parts/one/mine.txt") == "mine", within_s=30)


def content_or_none(volume: squall.Volume, path: str) -> str | None:
    try:
        return content(volume, path)
    except FileNotFoundError:
        return None


def test_what_is_not_committed_is_when_the_container_ends(shared: squall.Volume, writer: squall.Obj) -> None:
    writer.write.remote({"last.txt": "words"}, commit=False)
    eventually(lambda: content_or_none(shared, "last.txt") == "words", within_s=30)


def test_a_container_that_is_killed_in_a_commit_leaves_a_whole_version(
    shared: squall.Volume, writer: squall.Obj, effects: Path
) -> None:
    put(shared, a="1")
    writer.die_in_a_commit.remote(str(effects) + ".killed")
    assert content(shared, "a.txt") == "1"
    for entry in shared.iterdir("/"):
        if entry.type == "file":
            assert sum(map(len, shared.read_file(entry.path))) == entry.size
    assert {e.size for e in shared.iterdir("/") if e.path == "large.bin"} <= {6 * (8 << 20)}


def test_a_volume_of_nobody_is_refused_when_the_app_is_published(client: Platform) -> None:
    app = squall.App("of-nobody")
    app.function(volumes={"/data": squall.Volume.from_id("vo-nowhere")}, serialized=True)(put)
    with pytest.raises(exception.NotFoundError, match="vo-nowhere"), app.run():
        pass
