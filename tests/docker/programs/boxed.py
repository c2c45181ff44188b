"""What users do, for tests/docker/test_platforms.py: the same program on every backend that isolates."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import squall

app = squall.App("boxed")
volume = squall.Volume.from_name("boxed", create_if_missing=True)
IMPORTED = time.time()


@app.function(isolation="sandbox")
def double(x: int) -> int:
    return 2 * x


@app.function()
def spell(word: str) -> Iterator[str]:
    yield from word


@app.function()
def fails() -> None:
    def deep() -> None:
        raise LookupError("nothing there")

    deep()


@app.function(timeout=2)
def too_slow() -> None:
    time.sleep(60)


@app.function(memory=(64, 128))
def hoard() -> int:
    held = [bytearray(os.urandom(1 << 20)) for _ in range(512)]
    return len(held)


@app.function(secrets=[squall.Secret.from_dict({"KEY_OF_TEST": "of the test"})])
def speak(shared: squall.Dict) -> tuple[str, int]:
    print("said in", os.environ["SQUALL_CONTAINER_ID"], flush=True)
    shared["from the container"] = {"secret": os.environ["KEY_OF_TEST"]}
    return shared["from the test"], double.remote(4)


@app.function()
@squall.wsgi_app()
def page() -> Any:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello ", environ["wsgi.input"].read(), environ["PATH_INFO"].encode()]

    return application


@app.function(block_network=True)
def networks() -> list[str]:
    return sorted(os.listdir("/sys/class/net"))


@app.cls(max_containers=1)
class Counter:
    @squall.enter()
    def begin(self) -> None:
        self.value = 100

    @squall.method()
    def more(self) -> tuple[int, str]:
        self.value += 1
        return self.value, os.environ["SQUALL_CONTAINER_ID"]


@app.cls(enable_memory_snapshot=True)
class Loaded:
    @squall.enter(snap=True)
    def load(self) -> None:
        self.in_container = "SQUALL_CONTAINER_ID" in os.environ

    @squall.method()
    def see(self) -> bool:
        return self.in_container


# --- volumes


@app.function(volumes={"/data": volume})
def write(text: str) -> int:
    os.makedirs("/data/sub", exist_ok=True)
    with open("/data/sub/a.txt", "w") as file:
        file.write(text)
    if not os.path.lexists("/data/link"):
        os.symlink("sub/a.txt", "/data/link")
    if os.path.exists("/data/old.txt"):
        os.unlink("/data/old.txt")
    version = volume.commit()
    assert version is not None
    return version


@app.function(volumes={"/data": volume}, single_use_containers=True)
def read() -> tuple[str, list[str], float]:
    with open("/data/link") as file:
        return file.read(), sorted(os.listdir("/data")), IMPORTED


@app.cls(volumes={"/data": volume}, max_containers=1)
class Reader:
    """A container that stays."""

    @squall.method()
    def see(self, reload: bool) -> dict[str, str]:
        if reload:
            volume.reload()
        found = {}
        for folder, _, names in os.walk("/data"):
            for name in names:
                with open(os.path.join(folder, name)) as file:
                    found[os.path.relpath(os.path.join(folder, name), "/data")] = file.read()
        return found

    @squall.method()
    def replace_folder(self) -> None:
        """What overlays mark as hiding all that was there before."""
        os.rename("/data/kept.txt", "/data/moved.txt")
        for name in os.listdir("/data/sub"):
            os.unlink(f"/data/sub/{name}")
        os.rmdir("/data/sub")
        os.mkdir("/data/sub")
        with open("/data/sub/new.txt", "w") as file:
            file.write("new")
        volume.commit()


@app.function(volumes={"/data": volume.read_only()})
def escape() -> list[str | None]:
    told = []
    for path in ("/data/x", "/run/squall/volumes/0/changed/x"):
        try:
            open(path, "w").close()
        except OSError as error:
            told.append(error.strerror)
    volume.reload()
    return told


@app.function(volumes={"/data": volume}, single_use_containers=True)
def leave() -> None:
    with open("/data/left.txt", "w") as file:
        file.write("left")


@app.cls(volumes={"/data": volume}, enable_memory_snapshot=True, single_use_containers=True)
class Prepared:
    @squall.enter(snap=True)
    def prepare(self) -> None:
        volume.reload()
        with open("/data/prepared.txt", "w") as file:
            file.write("prepared")
        volume.commit()

    @squall.method()
    def see(self) -> str:
        with open("/data/prepared.txt") as file:
            return file.read()
