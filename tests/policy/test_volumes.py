"""Files of a volume: what commits make of them. All changes, or the first one's error."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from squall.errors import AlreadyExistsError, InvalidError, NotFoundError
from squall.http_api.storage import VolumeChange, VolumeFile
from squall_gateway.policy.volumes import applied, check_file, check_link, checked_path, followed, listed


def a_file(path: str, size: int = 1, mtime: float = 1.0) -> VolumeFile:
    return VolumeFile(path, size, mtime, 0o644, ())


def files(*paths: str) -> dict[str, VolumeFile]:
    return {path: a_file(path, size=len(path)) for path in paths}


def put(path: str, **more: Any) -> VolumeChange:
    return VolumeChange("put", path, a_file(path, size=99), **more)


PRESENT = files("a", "dir/b", "dir/sub/c")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([put("new")], ["a", "dir/b", "dir/sub/c", "new"]),
        ([put("/x//./y")], ["a", "dir/b", "dir/sub/c", "x/y"]),
        ([put("a", force=True)], ["a", "dir/b", "dir/sub/c"]),
        ([VolumeChange("remove", "a")], ["dir/b", "dir/sub/c"]),
        ([VolumeChange("remove", "dir", recursive=True)], ["a"]),
        ([VolumeChange("remove", "/", recursive=True)], []),
        ([VolumeChange("remove", "a"), put("a/b")], ["a/b", "dir/b", "dir/sub/c"]),
        ([VolumeChange("copy", "z", sources=("a",))], ["a", "dir/b", "dir/sub/c", "z"]),
        ([VolumeChange("copy", "dir", sources=("a",))], ["a", "dir/a", "dir/b", "dir/sub/c"]),
        ([VolumeChange("copy", "new/", sources=("a",))], ["a", "dir/b", "dir/sub/c", "new/a"]),
        ([VolumeChange("copy", "n", sources=("a", "dir/b"))], ["a", "dir/b", "dir/sub/c", "n/a", "n/b"]),
        (
            [VolumeChange("copy", "d2", sources=("dir",), recursive=True)],
            ["a", "d2/b", "d2/sub/c", "dir/b", "dir/sub/c"],
        ),
    ],
)
def test_changes_are_made_in_order(changes: list[VolumeChange], expected: list[str]) -> None:
    made = applied(PRESENT, changes)
    assert sorted(made) == expected
    assert all(file.path == path for path, file in made.items())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (put("a"), AlreadyExistsError),
        (put("dir", force=True), AlreadyExistsError),
        (put("a/below", force=True), AlreadyExistsError),
        (put("/", force=True), AlreadyExistsError),
        (put("../x"), InvalidError),
        (put("x/../../y"), InvalidError),
        (put("x\0y"), InvalidError),
        (put("x" * 256), InvalidError),
        (put("x/" * 3000), InvalidError),
        (VolumeChange("put", "x"), InvalidError),
        (VolumeChange("remove", "nowhere"), NotFoundError),
        (VolumeChange("remove", "dir"), InvalidError),
        (VolumeChange("copy", "x", sources=("nowhere",)), NotFoundError),
        (VolumeChange("copy", "x", sources=("dir",)), InvalidError),
        (VolumeChange("shred", "a"), InvalidError),
    ],
)
def test_what_cannot_be_made_changes_nothing(change: VolumeChange, error: type[Exception]) -> None:
    before = dict(PRESENT)
    with pytest.raises(error):
        applied(PRESENT, [put("first"), change])
    assert before == PRESENT


def test_folders_are_listed_as_long_as_they_have_files() -> None:
    def told(path: str, recursive: bool = False) -> list[tuple[str, str]]:
        return [(entry.path, entry.type[0]) for entry in listed(PRESENT, path, recursive=recursive)]

    assert told("/") == [("a", "f"), ("dir", "d")]
    assert told("dir/") == [("dir/b", "f"), ("dir/sub", "d")]
    assert told("", recursive=True) == [("a", "f"), ("dir", "d"), ("dir/b", "f"), ("dir/sub", "d"), ("dir/sub/c", "f")]
    assert told("dir/b") == [("dir/b", "f")]
    assert listed({}, "/", recursive=True) == []
    with pytest.raises(NotFoundError):
        listed(PRESENT, "di", recursive=False)


def test_a_path_has_one_form() -> None:
    assert {checked_path(path) for path in ("a/b", "/a/b", "a//b/", "./a/./b")} == {"a/b"}


def test_thousands_of_changes_do_not_look_at_all_files_each() -> None:
    present = files(*(f"there/{n % 50}/{n}" for n in range(3000)))
    changes = [put(f"new/{n % 50}/{n}") for n in range(1000)]
    changes += [VolumeChange("remove", f"there/{n % 50}/{n}") for n in range(1000)]
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    try:
        after = applied(present, changes)
    finally:
        sys.setprofile(None)

    assert len(after) == 3000
    assert steps < 100 * (len(present) + len(changes))  # one by one: more than a thousand for each


def test_a_folder_is_gone_with_its_last_file() -> None:
    changes = [VolumeChange("remove", "dir/b"), VolumeChange("remove", "dir/sub/c"), put("dir")]
    assert sorted(applied(PRESENT, changes)) == ["a", "dir"]
    with pytest.raises(AlreadyExistsError):
        applied(PRESENT, [changes[0], put("dir")])


def write(path: str) -> VolumeChange:
    return VolumeChange("write", path, a_file(path, size=99))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (write("a"), ["a", "dir/b", "dir/sub/c"]),
        (write("dir"), ["a", "dir"]),
        (write("a/b/c"), ["a/b/c", "dir/b", "dir/sub/c"]),
        (write("dir/sub"), ["a", "dir/b", "dir/sub"]),
        (VolumeChange("unlink", "a"), ["dir/b", "dir/sub/c"]),
        (VolumeChange("unlink", "gone"), ["a", "dir/b", "dir/sub/c"]),
        (VolumeChange("unlink", "dir"), ["a", "dir/b", "dir/sub/c"]),
    ],
)
def test_what_a_mounted_volume_commits_takes_its_place(change: VolumeChange, expected: list[str]) -> None:
    assert sorted(applied(PRESENT, [change])) == expected


@pytest.mark.parametrize("path", ["", "/", "../a", "a/../b", "a\0"])
def test_a_write_needs_a_path_of_the_volume(path: str) -> None:
    with pytest.raises(InvalidError):
        applied(PRESENT, [write(path)])


LINKED = {
    **PRESENT,
    **{
        path: VolumeFile(path, 0, 1.0, 0o777, (), link)
        for path, link in {
            "to-file": "dir/sub/c",
            "dir/up": "../a",
            "to-folder": "dir",
            "chain": "to-folder/up",
            "loop": "loop",
            "nowhere": "x/y",
            "dir/out": "../../a",
        }.items()
    },
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("to-file", "dir/sub/c"),
        ("dir/up", "a"),
        ("to-folder/b", "dir/b"),
        ("chain", "a"),
        ("loop", None),
        ("nowhere", None),
        ("to-folder", None),
        ("", None),
    ],
)
def test_a_file_is_found_through_links(path: str, found: str | None) -> None:
    file = followed(LINKED, path)
    assert (file and file.path) == found


@pytest.mark.parametrize("link", ["/etc/passwd", "../x", "a/../../x", "x\0", "\udcff"])
def test_a_link_that_leads_out_is_refused(link: str) -> None:
    with pytest.raises(InvalidError, match="leads out"):
        check_link("link", link)
    check_link("deep/er/link", "../../a")


def test_what_no_machine_could_make_a_file_of_is_refused() -> None:
    file = VolumeFile("a", 0, 1.0, 0o644, ())
    check_file("a", file)
    for changed in ({"mtime": 1e300}, {"mtime": float("nan")}, {"mode": 1 << 70}, {"mode": -1}):
        with pytest.raises(InvalidError, match="no file has"):
            check_file("a", replace(file, **changed))
    for half in ("\ud800", "dir/\udcff"):
        with pytest.raises(InvalidError, match="not a path"):
            applied(PRESENT, [VolumeChange("put", half, file)])


def test_a_copied_link_must_not_lead_out_from_its_new_place() -> None:
    with pytest.raises(InvalidError, match="leads out"):
        applied(LINKED, [VolumeChange("copy", "moved", sources=("dir/up",))])
