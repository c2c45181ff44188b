"""A real S3 server for tests: SeaweedFS from its wheel, on free ports, with keys; stopped and started again."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from obstore.exceptions import BaseError
from obstore.store import S3Store

READY_S = 60.0
STOP_S = 30.0
PARTS = (*(f"{part}.port{kind}" for part in ("master", "volume", "filer") for kind in ("", ".grpc")), "s3.port.grpc")
KEYS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret"}


class S3Server:
    """`with S3Server(folder) as s3: s3.store("bucket")`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = dict(zip((*PARTS, "s3.port"), _free_ports(len(PARTS) + 1), strict=True))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3.port']}"

    def store(self, bucket: str, **more: Any) -> S3Store:
        """With the right to do everything."""
        config = {
            "endpoint": self.url,
            "access_key_id": KEYS["AWS_ACCESS_KEY_ID"],
            "secret_access_key": KEYS["AWS_SECRET_ACCESS_KEY"],
            "region": "us-east-1",
        }
        return S3Store(bucket, config={**config, **more}, client_options={"allow_http": True})

    def start(self) -> None:
        """Returns when it answers; if it was there before, when it has found its objects again."""
        again = self._process is None and (self._folder / "s3.json").exists()
        rights = {"name": "test", "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        keys = {"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "s3.json"
        config.write_text(json.dumps({"identities": [{**rights, "credentials": [keys]}]}))
        weed = Path(sys.executable).with_name("weed")
        sockets = [f"-{part}.localSocket={self._folder / part}.sock" for part in ("s3", "filer")]
        fixed = ("server", f"-dir={self._folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false")
        more = ["-s3", f"-s3.config={config}", "-master.volumeSizeLimitMB=64", "-volume.preStopSeconds=0"]
        more += ["-volume.max=200", "-s3.port.lance=0", "-s3.port.iceberg=0"]  # seven for each bucket
        ports = [f"-{part}={port}" for part, port in self._ports.items()]
        with open(self._folder / "weed.log", "ab") as log:
            self._process = subprocess.Popen([weed, *fixed, *more, *sockets, *ports], stdout=log, stderr=log)
        deadline = time.monotonic() + READY_S
        while not (self._answers() and (not again or self._has_room())):
            assert self._process.poll() is None, (self._folder / "weed.log").read_text()[-3000:]
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.1)

    def make(self, bucket: str) -> S3Store:
        """A bucket: made by the first object in it."""
        made = self.store(bucket)
        made.put(".made", b"")
        made.delete(".made")
        return made

    def stop(self) -> None:
        """As a machine that goes away: nothing is refused politely."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(STOP_S)
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _has_room(self) -> bool:
        """It answers before its part that keeps the objects has told it which those are, and before it may write."""
        try:
            self.make("ready")
        except BaseError:
            return False
        return True

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        listeners = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]
