"""CloudBucketMount on a platform with processes: a program's files are objects of a real S3 server, and back."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from obstore.store import S3Store
from tests.flows.conftest import FORMS, PROGRAMS, nothing_was_forbidden
from tests.support.platform import ROOT, SQUALL, Platform, eventually
from tests.support.s3_server import KEYS, S3Server

import squall
from squall import exception
from squall_gpu_agent.buckets import joining

unusable = "only root may mount" if os.geteuid() else joining.unusable()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(unusable), reason=unusable)]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def platform(s3: S3Server) -> Iterator[Platform]:
    s3.make("flows").put("pre/a.txt", b"text")
    with FORMS["one-process"]() as started:
        pairs = [f"{name}={value}" for name, value in KEYS.items()]
        started.squall("secret", "create", "bucket-keys", *pairs)
        deploying = started.popen(SQUALL, "deploy", PROGRAMS / "bucket_user.py", TEST_S3_URL=s3.url)
        out, err = deploying.communicate(timeout=60)
        assert deploying.returncode == 0, out + err
        yield started
        nothing_was_forbidden(started)


def function(name: str) -> squall.Function:
    return squall.Function.from_name("bucket-user", name)


def content(store: S3Store, path: str) -> bytes | None:
    try:
        return bytes(store.get(path).bytes())
    except FileNotFoundError:
        return None


def test_containers_read_and_write_objects_as_files(client: Platform, s3: S3Server) -> None:
    seen = function("double").remote("a.txt")
    assert {"a.txt", "out"} <= set(seen)
    assert not {*KEYS} & set(seen), "keys of a bucket are no variables of the container"
    assert content(s3.store("flows"), "pre/out/a.txt") == b"texttext"
    assert function("read_only").remote() == "Read-only file system"
    function("leave_open").remote()
    assert eventually(lambda: content(s3.store("flows"), "left.txt") == b"left", within_s=60)
    assert not os.path.exists("/bucket/out"), "the machine's own folders stay as they were"


def test_the_example_makes_reports_in_the_bucket(platform: Platform, s3: S3Server) -> None:
    store = s3.make("orders")
    store.put("in/2026-11-01/a.csv", b"customer,amount\nx,1.50\ny,2\n")
    store.put("in/2026-11-01/b.csv", b"customer,amount\nx,1\n")
    store.put("in/2026-11-02/a.csv", b"customer,amount\nx,a lot\n")
    platform.squall("secret", "create", "etl-keys", *[f"{name}={value}" for name, value in KEYS.items()])
    running = platform.popen(SQUALL, "run", ROOT / "examples" / "etl_bucket.py", ETL_ENDPOINT=s3.url)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, out + err
    assert "2026-11-01: 2 customers, 4.50; 0 files set aside" in out
    assert "2026-11-02: 0 customers, 0.00; 1 files set aside" in out
    assert content(store, "out/2026-11-01.csv") == b"x,2.50\r\ny,2.00\r\n"
    assert content(store, "aside/2026-11-02/a.csv") == b"customer,amount\nx,a lot\n"


def test_a_bucket_that_is_not_there_is_told_to_the_caller(platform: Platform, s3: S3Server) -> None:
    command = (SQUALL, "run", f"{PROGRAMS / 'bucket_user.py'}::nowhere")
    running = platform.popen(*command, TEST_S3_URL=s3.url)
    out, err = running.communicate(timeout=100)
    assert running.returncode != 0
    assert "there is no bucket 'no-such-bucket'" in out + err
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in out + err


def test_a_secret_that_is_not_there_is_told_at_once(client: Platform) -> None:
    app = squall.App("without-keys")
    mount = squall.CloudBucketMount("flows", secret=squall.Secret.from_name("no-such-keys"))
    app.function(volumes={"/data": mount}, serialized=False, name="f")(content)
    with pytest.raises(exception.NotFoundError, match="no-such-keys"), app.run():
        pass
