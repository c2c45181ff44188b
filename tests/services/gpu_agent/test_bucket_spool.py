"""What is written to mounted buckets and not stored yet: it cannot fill the machine's disk."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from squall_gpu_agent.buckets import contents
from squall_gpu_agent.buckets.contents import Written

pytestmark = pytest.mark.root
PIECE = memoryview(bytes(256 << 10))


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=False, capture_output=True)


def fill(written: Written) -> None:
    for _ in range(64):
        written.write(written.size, PIECE)


def test_writers_leave_room_on_the_disk_and_give_theirs_back(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "RESERVE_BYTES", 2 << 20)
    one, other = (Written(cast("Any", None), spool, path, None) for path in ("one", "other"))

    with pytest.raises(OSError, match="one: the machine's disk has no room") as refused:
        fill(one)
    assert refused.value.errno == errno.ENOSPC
    assert shutil.disk_usage(spool).free >= 2 << 20, "the machine's other work has its room"
    assert one.size >= 5 << 20, "what was written is there"
    assert one.read(one.size - 1, 1) == b"\0"
    with pytest.raises(OSError, match="other: the machine's disk has no room"):
        other.write(0, PIECE)

    one.close()
    assert other.write(0, PIECE) == len(PIECE)
    other.close()
    assert shutil.disk_usage(spool).used == 0
