"""The folder of images of memory: whose they are on the disk, what is not taken over, what leaves."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from squall_gpu_agent.backends.gvisor.memory_images import FILE, MemoryImage, MemoryImages, NotKept

pytestmark = pytest.mark.root

IDS = 0x70010000
KIB = 1024


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def images(tmp_path: Path, clock: Clock) -> MemoryImages:
    made = MemoryImages(tmp_path / "memory", 400 * KIB, clock)
    made.open()
    return made


def begun(images: MemoryImages, kib: int = 100) -> Path:
    """As runsc leaves it."""
    folder = images.begin(IDS)
    file = folder / "memory" / FILE
    file.write_bytes(b"m" * kib * KIB)
    file.chmod(0o644)
    os.chown(file, IDS, IDS)
    return folder


def kept(images: MemoryImages, written: Path, key: str = "mi-1", function: str = "f", kib: int = 100) -> MemoryImage:
    return images.keep(begun(images, kib), written, IDS, key=key, function=function, config={})


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """What a template has written to its own disk."""
    folder = tmp_path / "upper"
    (folder / "root").mkdir(parents=True)
    (folder / "root" / "cache").write_text("kept")
    os.symlink("/etc/shadow", folder / "root" / "link")
    for path, user in ((folder, 0), (folder / "root", 0), (folder / "root" / "cache", 1000), (folder / "root/link", 0)):
        os.chown(path, IDS + user, IDS + user, follow_symlinks=False)
    os.link(folder / "root" / "cache", folder / "root" / "again")
    return folder


def test_an_image_belongs_to_the_agent_alone_once_it_is_written(images: MemoryImages, written: Path) -> None:
    image = kept(images, written)
    for path in (image.folder.parent, image.memory):
        assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (0, 0o700)
    file = image.memory / FILE
    assert (file.stat().st_uid, stat.S_IMODE(file.stat().st_mode)) == (0, 0o600)
    assert images.get("mi-1", "f") is image


def test_what_a_template_wrote_is_kept_with_the_owners_that_it_saw(images: MemoryImages, written: Path) -> None:
    above = kept(images, written).above
    assert [(above / name).lstat().st_uid for name in ("root", "root/cache", "root/again", "root/link")] == [
        *(0, 1000, 1000, 0)
    ]
    assert os.readlink(above / "root" / "link") == "/etc/shadow"
    assert (above / "root" / "cache").read_text() == "kept"


@pytest.mark.parametrize("trick", ["link", "hard link", "fifo", "second file", "of another user", "empty", "nothing"])
def test_nothing_but_one_file_of_the_template_is_taken_over(
    images: MemoryImages, written: Path, tmp_path: Path, trick: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("of the host")
    victim.chmod(0o644)
    folder = begun(images)
    file = folder / "memory" / FILE
    if trick not in ("second file", "of another user"):
        file.unlink()
    if trick == "link":
        file.symlink_to(victim)
    elif trick == "hard link":
        os.chown(victim, IDS, IDS)
        os.link(victim, file)
    elif trick == "fifo":
        os.mkfifo(file)
    elif trick == "second file":
        (folder / "memory" / "more").touch()
    elif trick == "of another user":
        os.chown(file, 1000, 1000)
    elif trick == "empty":
        file.touch()
        os.chown(file, IDS, IDS)
    with pytest.raises(NotKept, match="its memory cannot be kept"):
        images.keep(folder, written, IDS, key="mi-1", function="f", config={})
    assert (victim.stat().st_mode & 0o777, victim.read_text()) == (0o644, "of the host")
    assert images.get("mi-1", "f") is None


def test_the_disk_that_they_take_is_bounded(images: MemoryImages, written: Path, clock: Clock) -> None:
    for number in range(4):
        clock.now += 1
        kept(images, written, f"mi-{number}", f"f{number}", kib=150)
    assert [image.key for image in images.all()] == ["mi-2", "mi-3"]
    with pytest.raises(NotKept, match="does not fit into the 0 MiB"):
        kept(images, written, "mi-5", "f5", kib=500)
    too_large = begun(images, 500)
    assert "does not fit" in images.trouble(too_large), "while it is written"


def test_what_is_used_stays_until_it_is_let_go(images: MemoryImages, written: Path, clock: Clock) -> None:
    used = kept(images, written, "mi-1", "f1", kib=150)
    release = images.hold(used)
    assert release is not None
    clock.now = 1e6
    kept(images, written, "mi-2", "f2", kib=150)
    kept(images, written, "mi-3", "f3", kib=150)
    assert [image.key for image in images.all()] == ["mi-1", "mi-3"]
    images.discard(used)
    assert (images.get("mi-1", "f1"), images.hold(used)) == (None, None)
    assert used.memory.exists(), "a container runs above it"
    release()
    assert not used.folder.exists()


def test_secrets_of_an_older_version_leave_the_disk(images: MemoryImages, written: Path, clock: Clock) -> None:
    old, new = kept(images, written, "mi-old"), kept(images, written, "mi-new")
    other = kept(images, written, "mi-other", function="g")
    assert images.get("mi-new", "f") is new
    clock.now = 601.0
    assert images.sweep() == 1
    assert (old.folder.exists(), new.folder.exists(), other.folder.exists()) == (False, True, True)


def test_nothing_outlives_its_agent(images: MemoryImages, written: Path, tmp_path: Path, clock: Clock) -> None:
    image = kept(images, written)
    begun(images)
    again = MemoryImages(tmp_path / "memory", 400 * KIB, clock)
    again.open()
    assert os.listdir(tmp_path / "memory") == []
    assert again.all() == []
    again.close()
    assert not image.folder.parent.exists()


def test_none_is_begun_where_none_is_kept(tmp_path: Path, clock: Clock) -> None:
    images = MemoryImages(tmp_path / "memory", 0, clock)
    images.open()
    with pytest.raises(NotKept, match="no memory snapshots are kept"):
        images.begin(IDS)
