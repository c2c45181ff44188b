"""A bucket as a folder of a sandbox: mounted in its namespaces alone, and gone with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.docker.sandboxes import sandbox_backend, shared_base_root
from tests.sdk.runner.containers import Workshop, call, value
from tests.support.bucket_server import server_of
from tests.support.s3_server import S3Server

from squall_gpu_agent.backend import MountedBucket

pytestmark = [pytest.mark.slow, pytest.mark.root]
PROGRAM = """
import os


def f(name):
    with open(f"/bucket/{name}") as file:
        text = file.read()
    with open("/bucket/out.txt", "w") as file:
        file.write(text * 2)
    told = []
    for path in ("/fixed/x", "/dev/fuse", "/bucket/no"):
        try:
            os.open(path, os.O_RDWR | (os.O_CREAT if path == "/fixed/x" else 0))
        except OSError as error:
            told.append(error.strerror)
    return text, told
"""


async def test_a_sandbox_reads_and_writes_objects(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with S3Server(tmp_path / "s3") as s3:
        store = s3.make("boxed")
        store.put("in.txt", b"text")
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        with (
            server_of(s3, tmp_path / "a", bucket="boxed") as first,
            server_of(s3, tmp_path / "b", bucket="boxed") as second,
        ):
            for process in (first, second):
                assert process.stdout is not None
                assert json.loads(process.stdout.readline()) == {"ready": True}
            backend = sandbox_backend(tmp_path / "sandbox", shared_base_root(tmp_path_factory))
            workshop = Workshop(backend, tmp_path)  # type: ignore[arg-type]
            buckets = (
                MountedBucket(path="/bucket", read_only=False, server=tmp_path / "a" / "socket"),
                MountedBucket(path="/fixed", read_only=True, server=tmp_path / "b" / "socket"),
            )
            try:
                container = await workshop.start(PROGRAM, buckets=buckets)
                text, told = value(await call(container, "in.txt"))
                assert text == "text"
                assert backend._kept.all() == []  # a slot made ahead would have the buckets of this one
                assert told == ["Read-only file system", "No such file or directory", "No such file or directory"]
                assert bytes(store.get("out.txt").bytes()) == b"texttext"
                container.kill()
                await container.wait()
                assert (first.wait(60), second.wait(60)) == (0, 0), "they end with the sandbox"
            finally:
                await backend.close()
