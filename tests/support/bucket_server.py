"""The process that serves a bucket to one mount, started as the agent does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.s3_server import KEYS, S3Server


@contextmanager
def server_of(s3: S3Server, folder: Path, rules: Any = None, **config: Any) -> Iterator[subprocess.Popen[bytes]]:
    bucket = {"endpoint": s3.url, "variables": KEYS, **config}
    settings = {"bucket": bucket, "rules": rules, "socket": str(folder / "socket"), "spool": str(folder)}
    command = [sys.executable, "-I", "-m", "squall_gpu_agent.buckets"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        process.stdin.flush()
        try:
            yield process
        finally:
            process.stdin.close()
            try:
                process.wait(30)
            finally:
                process.kill()
