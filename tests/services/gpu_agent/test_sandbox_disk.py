"""What an isolated container has written to its volumes, as the one that fills the disk is found."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from squall_gpu_agent.backend import FailureKind
from squall_gpu_agent.backends import payload_container as container
from squall_gpu_agent.backends.sandbox import disks
from squall_gpu_agent.execution import no_room


def test_removed_files_that_are_held_open_and_empty_ones_are_counted(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    before = container.removed_bytes([os.getpid()], {device})
    with (tmp_path / "hidden").open("wb") as hidden, (tmp_path / "hidden").open("rb"):
        hidden.write(bytes(1 << 20))
        hidden.flush()
        os.fsync(hidden.fileno())
        assert container.removed_bytes([os.getpid()], {device}) == before, "it has a name"
        (tmp_path / "hidden").unlink()
        found = container.removed_bytes([os.getpid(), 1 << 22], {device}) - before
        assert 1 << 20 <= found < 2 << 20, "once, however often it is open"
        assert container.removed_bytes([os.getpid()], set()) == 0
    for number in range(10):
        (tmp_path / str(number)).touch()
    assert container.written_bytes(str(tmp_path)) == 10 * container.SMALLEST_BYTES


def test_a_disk_without_room_for_files_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = os.statvfs(tmp_path)
    monkeypatch.setattr(container, "DISK_RESERVE_BYTES", 0)
    monkeypatch.setattr(container, "INODE_RESERVE", 0)
    assert not container.is_nearly_full(str(tmp_path))
    monkeypatch.setattr(container, "INODE_RESERVE", disk.f_files + 1)
    assert container.is_nearly_full(str(tmp_path)) == (disk.f_files > 0)
    monkeypatch.setattr(container, "DISK_RESERVE_BYTES", disk.f_blocks * disk.f_frsize + 1)
    assert container.is_nearly_full(str(tmp_path))


def test_arguments_without_room_are_to_blame_only_if_no_other_container_would_have_it(tmp_path: Path) -> None:
    full, huge = OSError(28, "No space left on device"), f"{'0' * 64}:{1 << 60}"

    def found(error: OSError, ref: str, *, served: int = 1, limit_mib: int = 512) -> Any:
        inner = SimpleNamespace(disk_mib=limit_mib, incoming=tmp_path)
        return no_room(error, SimpleNamespace(container=inner, served=served), ref)  # type: ignore[arg-type]

    for limit_mib, served, kind in (
        (512, 2, FailureKind.DISK_FULL),
        (1 << 50, 1, FailureKind.DISK_FULL),
        (1 << 50, 2, FailureKind.INFRA),
    ):
        failed = found(full, huge, served=served, limit_mib=limit_mib)
        assert (failed.kind, failed.disk.limit_mib) == (kind, limit_mib)
        assert f"of {limit_mib} MiB are free in its container" in failed.message
    assert found(full, huge, limit_mib=0) is None, "it has no disk of its own: the machine's is full"
    assert found(full, f"{'0' * 64}:1") is None, "there is room"
    assert found(OSError(5, "Input/output error"), huge) is None


def test_a_machine_that_cannot_make_disks_says_why_and_keeps_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=r"MiB of this machine's disk are free, 1024 of which are kept"):
        disks.make(tmp_path, 1 << 40)
    bad = tmp_path / "mke2fs"
    bad.write_text("#!/bin/sh\necho no such feature >&2; exit 3\n")
    bad.chmod(0o755)
    monkeypatch.setattr(disks, "_PATH", str(tmp_path))
    assert disks.trouble(tmp_path) == "mke2fs ended with status 3: no such feature"
    bad.unlink()
    assert "mke2fs is not there" in disks.trouble(tmp_path)
    assert os.listdir("/proc/self/fd") == opened
