"""A layer that has its name is whole after a power failure: what its file system has on disk at that moment is all.

The disk is a file. What is in the file when the layer is published is what a machine finds that is switched on again.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from squall_images.chain import Configuration
from squall_images.layered import Description, LayerFolder

pytestmark = [pytest.mark.root, pytest.mark.slow]
FILES = 300


@contextlib.contextmanager
def mounted(disk: Path, at: Path) -> Iterator[Path]:
    at.mkdir()
    subprocess.run(["mount", "-o", "loop", str(disk), str(at)], check=True, timeout=60)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True, timeout=60)


def after_a_power_failure(disk: Path, copy: Path) -> contextlib.AbstractContextManager[Path]:
    """The disk as it is now, without anything that was still in memory."""
    shutil.copyfile(disk, copy)
    return mounted(copy, copy.with_suffix(".mounted"))


def test_what_is_published_is_whole_after_a_power_failure(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(disk)], check=True, timeout=60)
    with mounted(disk, tmp_path / "now") as now:
        folder = LayerFolder(now)
        folder.open()
        files = folder.staging("one") / "fs"
        files.mkdir(parents=True)
        for number in range(FILES):
            (files / str(number)).write_text(f"{number}\n" * 1000)
        with after_a_power_failure(disk, tmp_path / "before") as then:
            written = [path for path in (then / "staging").glob("one/fs/*") if path.stat().st_size]
            assert len(written) < FILES, "otherwise this test shows nothing"
        folder.publish(files.parent, "one", {"title": "one"})
        folder.describe(Description(image_id="im-1", layers=("0" * 32,), python=None, start=Configuration()))
        with after_a_power_failure(disk, tmp_path / "after") as then:
            found = LayerFolder(then)
            assert found.has("one")
            for number in range(FILES):
                assert (found.layer("one") / str(number)).read_text() == f"{number}\n" * 1000
            assert found.about("one")["title"] == "one"
            assert Description.of_json((found.images / "im-1.json").read_text()).image_id == "im-1"
