"""Buckets as folders: a real kernel, a real S3 server, the process that serves between them."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store
from tests.support.bucket_server import server_of
from tests.support.platform import eventually
from tests.support.s3_server import KEYS, S3Server

from squall_gpu_agent.buckets import contents, joining
from squall_gpu_agent.buckets.contents import Reader, Readers
from squall_gpu_agent.buckets.store import Bucket, Entry

MNT_DETACH = 2
unusable = "only root may mount" if os.geteuid() else joining.unusable()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(unusable), reason=unusable)]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@dataclass
class Mount:
    """A mounted bucket, and what its server said."""

    folder: Path
    process: subprocess.Popen[bytes]
    said: list[str] = field(default_factory=list)

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(json.loads(line)["said"])


@contextmanager
def mounted(s3: S3Server, folder: Path, bucket: str, **config: Any) -> Iterator[Mount]:
    place = folder / "mount"
    place.mkdir(parents=True)
    with server_of(s3, folder, bucket=bucket, **config) as process, ExitStack() as after:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"ready": True}
        joining.mount(str(folder / "socket"), str(place))
        after.callback(ctypes.CDLL(None).umount2, os.fsencode(place), MNT_DETACH)
        mount = Mount(place, process)
        listener = Thread(target=mount.listen)
        listener.start()
        yield mount
    listener.join(30)


def content(store: S3Store, path: str) -> bytes | None:
    try:
        return bytes(store.get(path).bytes())
    except FileNotFoundError:
        return None


def test_objects_are_files_that_are_read_in_parts(s3: S3Server, tmp_path: Path) -> None:
    store = s3.make("reading")
    large = random.Random(1).randbytes(20_000_000)
    store.put("pre/in/a.txt", b"hello")
    store.put("pre/large", large)
    store.put("outside", b"not of the prefix")

    with mounted(s3, tmp_path, "reading", prefix="pre/") as mount:
        found = [(folder, sorted(folders), sorted(files)) for folder, folders, files in os.walk(mount.folder)]
        assert found == [(str(mount.folder), ["in"], ["large"]), (str(mount.folder / "in"), [], ["a.txt"])]
        assert (mount.folder / "in" / "a.txt").read_text() == "hello"
        with open(mount.folder / "large", "rb") as file:
            file.seek(15_000_000)
            assert file.read(1000) == large[15_000_000:15_001_000]
            file.seek(0)
            assert file.read() == large
        assert (mount.folder / "large").stat().st_size == len(large)
        with pytest.raises(FileNotFoundError):
            (mount.folder / "nothing").read_text()
        store.put("pre/later", b"by others")
        assert eventually((mount.folder / "later").exists, within_s=60)
    assert mount.process.returncode == 0
    assert mount.said == []


def test_what_is_written_is_an_object_when_close_returns(s3: S3Server, tmp_path: Path) -> None:
    store = s3.make("writing")
    store.put("there", b"as it was")
    large = random.Random(2).randbytes(20_000_000)
    with mounted(s3, tmp_path, "writing") as mount:
        (mount.folder / "new" / "deep").mkdir(parents=True)
        (mount.folder / "new" / "deep" / "a").write_text("a")
        (mount.folder / "large").write_bytes(large)
        with open(mount.folder / "there", "ab") as file:
            file.write(b", and more")
        with open(mount.folder / "synced", "wb") as file:
            file.write(b"first")
            file.flush()
            assert content(store, "synced") is None
            os.fsync(file.fileno())
            assert content(store, "synced") == b"first"
            file.write(b" then")
        (mount.folder / "empty").touch()
        os.truncate(mount.folder / "synced", 3)
        assert content(store, "new/deep/a") == b"a"
        assert content(store, "large") == large
        assert content(store, "there") == b"as it was, and more"
        assert content(store, "synced") == b"fir"
        assert content(store, "empty") == b""
        os.rename(mount.folder / "large", mount.folder / "new" / "moved")
        (mount.folder / "there").unlink()
        assert content(store, "new/moved") == large
        assert (content(store, "there"), content(store, "large")) == (None, None)
        assert (mount.folder / "new" / "moved").read_bytes() == large
        with pytest.raises(OSError, match="cross-device") as folders:
            os.rename(mount.folder / "new", mount.folder / "newer")
        assert folders.value.errno == errno.EXDEV
        with pytest.raises(OSError, match="not empty"):
            (mount.folder / "new").rmdir()
        with pytest.raises(OSError, match="Invalid argument"):
            (mount.folder / "a\nb").touch()


def test_a_writer_that_is_killed_leaves_the_object_as_it_was(s3: S3Server, tmp_path: Path) -> None:
    store = s3.make("killed")
    store.put("there", b"as it was")
    program = """
import os, signal, sys
for name in ("there", "new"):
    os.write(os.open(f"{sys.argv[1]}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), b"half")
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
os._exit(3)  # closes nothing itself, and has written all it wanted to
"""
    with mounted(s3, tmp_path, "killed") as mount:
        killed = subprocess.run([sys.executable, "-c", program, mount.folder, "kill"], check=False)
        assert killed.returncode == -signal.SIGKILL
        eventually(lambda: len(mount.said) == 2, within_s=60)
        assert all("whoever wrote it was killed" in said for said in mount.said)
        assert (content(store, "there"), content(store, "new")) == (b"as it was", None)
        assert eventually(lambda: (mount.folder / "there").read_bytes() == b"as it was", within_s=60)
        assert eventually(lambda: not (mount.folder / "new").exists(), within_s=60)
        subprocess.run([sys.executable, "-c", program, mount.folder, "exit"], check=False)
        assert eventually(lambda: content(store, "new") == content(store, "there") == b"half", within_s=60)


def test_a_store_that_goes_away_is_an_error_and_loses_nothing_in_silence(tmp_path: Path) -> None:
    with S3Server(tmp_path / "s3") as s3:
        store = s3.make("down")
        store.put("there", b"as it was")
        with mounted(s3, tmp_path / "m", "down") as mount:
            file = open(mount.folder / "there", "wb")  # noqa: SIM115 — its close is what is tested
            file.write(b"new")
            s3.stop()
            with pytest.raises(OSError, match="Input/output error"):
                file.close()
            with pytest.raises(OSError, match="Input/output error"):
                os.listdir(mount.folder)
            assert mount.said
            s3.start()
            assert eventually(lambda: has_recovered(store, "there") == b"as it was", within_s=60)
            assert eventually(lambda: is_taken(mount.folder / "there", b"again"), within_s=100)
            assert content(store, "there") == b"again"


def has_recovered(store: S3Store, path: str) -> bytes | None:
    """A server that has started again may say for a while that it fails."""
    try:
        return content(store, path)
    except BaseError:
        return None


def is_taken(path: Path, data: bytes) -> bool:
    try:
        path.write_bytes(data)
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("config", "code", "told"),
    [
        ({"bucket": "nowhere"}, "not_found", "there is no bucket 'nowhere'"),
        ({"variables": {**KEYS, "AWS_SECRET_ACCESS_KEY": "wrong"}}, "permission_denied", "the keys of its secret"),
        ({"variables": {"AWS_SESSION_TOKEN": "x"}}, "invalid", "its secret has no AWS_ACCESS_KEY_ID"),
        ({"variables": {}}, "permission_denied", "without keys nobody may"),
        ({"endpoint": "http://127.0.0.1:1"}, "service", "cannot be reached"),
        ({"rules": {"allowed": ["127.0.0.0/8"], "denied": []}}, "permission_denied", "may not reach the endpoint"),
        ({"rules": {"allowed": [], "denied": []}, "endpoint": "http://10.255.255.1"}, "permission_denied", "SANDBOX"),
    ],
)
def test_what_cannot_be_mounted_is_told_before_a_container_starts(
    s3: S3Server, tmp_path: Path, config: dict[str, Any], code: str, told: str
) -> None:
    with server_of(s3, tmp_path, **{"bucket": "reading", **config}) as process:
        assert process.stdout is not None
        error = json.loads(process.stdout.readline())["error"]
        assert process.wait(60) == 1
    assert error[0] == code
    assert told in " ".join(error)
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in str(error)


def test_its_server_takes_no_more_memory_than_it_may(s3: S3Server, tmp_path: Path) -> None:
    s3.make("bounded")
    with mounted(s3, tmp_path, "bounded") as mount:
        about = Path("/proc", str(mount.process.pid))
        limits = {line[:26].strip(): line[26:].split() for line in (about / "limits").read_text().splitlines()}
        assert limits["Max data size"][:2] == [str(2 << 30)] * 2
        assert int((about / "oom_score_adj").read_text()) == 500


class Stored:
    """Any part of any object, at once."""

    def read(self, path: str, entry: Entry, start: int, end: int) -> bytes:
        return bytes(end - start)


def test_however_many_files_are_read_what_is_held_of_them_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "AHEAD_BYTES", 3 << 20)
    readers, bucket = Readers(), cast("Bucket", Stored())
    entry = Entry(1 << 20, 0.0, None)
    with ThreadPoolExecutor(4) as ahead:
        several = [Reader(bucket, str(n), entry, ahead, readers) for n in range(40)]
        for offset in (0, 300_000, 700_000):
            for each in several:
                assert len(each.read(offset, 1000)) == 1000
                held = sum(window.end - window.start for one in several for window in one._windows)
                assert held <= contents.AHEAD_BYTES
        assert several[0].read(0, 1 << 20) == bytes(1 << 20), "it is fetched again"
        for each in several:
            each.close()
