"""Functions with a mounted bucket, for tests/flows/test_buckets.py. The bucket is there when it is imported."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import squall

app = squall.App("bucket-user")
URL = os.environ.get("TEST_S3_URL", "http://127.0.0.1:1")
keys = squall.Secret.from_name("bucket-keys")


def bucket(name: str = "flows", **more: object) -> squall.CloudBucketMount:
    return squall.CloudBucketMount(name, bucket_endpoint_url=URL, secret=keys, **more)  # type: ignore[arg-type]


@app.function(volumes={"/bucket": bucket(key_prefix="pre/")})
def double(name: str) -> list[str]:
    """Written by a program that is not Python."""
    text = Path("/bucket", name).read_text()
    Path("/bucket/out").mkdir(exist_ok=True)
    subprocess.run(["sh", "-c", f"cat /bucket/{name} /bucket/{name} > /bucket/out/{name}"], check=True)
    assert Path("/bucket/out", name).read_text() == text * 2
    return sorted(os.environ) + sorted(os.listdir("/bucket"))


@app.function(volumes={"/bucket": bucket(read_only=True)})
def read_only() -> str:
    try:
        Path("/bucket/unwritten").write_text("x")
    except OSError as error:
        return error.strerror or ""
    return "written"


@app.function(volumes={"/bucket": bucket()}, single_use_containers=True)
def leave_open() -> None:
    """The kernel closes it when the container ends."""
    os.write(os.open("/bucket/left.txt", os.O_WRONLY | os.O_CREAT), b"left")


@app.function(volumes={"/bucket": bucket("no-such-bucket")})
def nowhere() -> None: ...
