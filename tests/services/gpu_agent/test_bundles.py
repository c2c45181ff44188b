"""Code bundles: what comes out of a zip, and what does not."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from squall.errors import DataLossError, SquallError
from squall_service.bundles import BadBundle, Limits, extract


def archive(tmp_path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    path = tmp_path / "bundle.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in members:
            bundle.writestr(name, content)
    return path


def special(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    return info


def test_files_and_folders_come_out_with_their_content(tmp_path: Path) -> None:
    path = archive(tmp_path, ("root/app.py", b"code"), ("data/", b""), (special("bin/tool", stat.S_IFREG), b"#!"))
    extract(path, tmp_path / "out")
    assert (tmp_path / "out/root/app.py").read_bytes() == b"code"
    assert (tmp_path / "out/data").is_dir()
    assert (tmp_path / "out/bin/tool").stat().st_mode & 0o111


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "..", "./../evil"])
def test_a_path_that_leads_out_is_refused_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path, ("good.py", b""), (name, b"evil"))
    with pytest.raises(BadBundle):
        extract(path, tmp_path / "in/out")
    assert [p.name for p in tmp_path.rglob("*")] == ["bundle.zip", "in"] or not list((tmp_path / "in").iterdir())
    assert not list(tmp_path.rglob("evil"))


def test_a_path_too_deep_to_be_walked_through_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match="folders"):
        extract(archive(tmp_path, ("a/" * 1200 + "f.py", b"")), tmp_path / "out")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    path = archive(tmp_path, (special("link", kind), b"/etc/passwd"), ("link/x", b""))
    with pytest.raises(BadBundle):
        extract(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_second_member_of_the_same_name_is_not_written_through_the_first(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = archive(tmp_path, ("a", b"1"), ("a", b"2"))
    with pytest.raises(OSError):
        extract(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = archive(tmp_path, ("zeros", b"\0" * 1_000_000))
    with pytest.raises(BadBundle, match="would become"):
        extract(path, tmp_path / "out", Limits(ratio_free_bytes=10_000))


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, *((f"{number}", b"") for number in range(4)))
    with pytest.raises(BadBundle, match="files"):
        extract(path, tmp_path / "out", Limits(files=3))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut"])
def test_a_damaged_archive_is_reported_as_lost_data(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bundle.zip"
    path.write_bytes(content)
    with pytest.raises(DataLossError):
        extract(path, tmp_path / "out")


def test_a_damaged_member_leaves_nothing(tmp_path: Path) -> None:
    path = archive(tmp_path, ("a.py", b"content " * 100))
    data = bytearray(path.read_bytes())
    data[45] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises((SquallError, OSError)):
        extract(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_somebody_else_extracted_meanwhile_is_taken_as_it_is(tmp_path: Path) -> None:
    path = archive(tmp_path, ("a.py", b"1"))
    extract(path, tmp_path / "out")
    extract(path, tmp_path / "out")
    assert (tmp_path / "out/a.py").read_bytes() == b"1"
