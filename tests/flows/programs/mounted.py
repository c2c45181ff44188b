"""Functions with mounted volumes, for tests/flows/test_mounted_volumes.py."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import squall

app = squall.App("mounted")
shared = squall.Volume.from_name("shared", create_if_missing=True)
single = {"max_containers": 1, "scaledown_window": 2}


def tree(folder: str) -> dict[str, str]:
    base = Path(folder)
    return {str(path.relative_to(base)): path.read_text() for path in sorted(base.rglob("*")) if path.is_file()}


@app.function(volumes={"/data": shared}, single_use_containers=True)
def in_new_container() -> dict[str, str]:
    """What a container sees when it starts."""
    return tree("/data")


@app.cls(volumes={"/data": shared}, **single)
class Writer:
    """A container that stays."""

    @squall.method()
    def write(self, files: dict[str, str], remove: tuple[str, ...] = (), commit: bool = True) -> int | None:
        for name in remove:
            path = Path("/data", name)
            path.unlink()
        for name, text in files.items():
            path = Path("/data", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return shared.commit() if commit else None

    @squall.method()
    def reload(self) -> dict[str, str]:
        shared.reload()
        return tree("/data")

    @squall.method()
    def see(self) -> dict[str, str]:
        return tree("/data")

    @squall.method()
    def reload_with_an_open_file(self) -> str:
        with open("/data/a.txt"):
            try:
                shared.reload()
            except RuntimeError as error:
                return str(error)
        return "reloaded"

    @squall.method()
    def commit_expecting(self, version: int) -> str:
        Path("/data/expected.txt").write_text(str(version))
        try:
            shared.commit(expect=version)
        except squall.exception.ConflictError as error:
            return str(error)
        finally:
            Path("/data/expected.txt").unlink()
        return "committed"

    @squall.method()
    def commit_with(self, what: str) -> str:
        path = Path("/data/strange")
        if what == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(what)
        try:
            shared.commit()
        except RuntimeError as error:
            return str(error)
        finally:
            path.unlink()
        return "committed"

    @squall.method()
    def link(self) -> tuple[str, str]:
        Path("/data/sub").mkdir(exist_ok=True)
        Path("/data/sub/target.txt").write_text("linked")
        for name, target in (("relative", "sub/target.txt"), ("absolute", "/data/sub/target.txt")):
            if not os.path.lexists(f"/data/{name}"):
                os.symlink(target, f"/data/{name}")
        shared.commit()
        return os.readlink("/data/relative"), os.readlink("/data/absolute")

    @squall.method()
    def commit_in_a_child(self) -> int:
        """As `multiprocessing` does: the child has the parent's memory, and none of its threads."""
        Path("/data/before.txt").write_text("before")
        pid = os.fork()
        if pid == 0:
            try:
                Path("/data/child.txt").write_text("child")
                shared.commit()
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        Path("/data/after.txt").write_text("after")
        shared.commit()
        return os.waitstatus_to_exitcode(status)

    @squall.method()
    def die_in_a_commit(self, marker: str) -> None:
        """Large enough for the kill to come while blocks travel. The next attempt finds that it was done."""
        if os.path.exists(marker):
            return
        Path(marker).touch()
        with open("/data/large.bin", "wb") as file:
            for number in range(6):
                file.write(bytes([number]) * (8 << 20))
        pid = os.getpid()
        if os.fork() == 0:
            time.sleep(0.02)
            os.kill(pid, signal.SIGKILL)
            os._exit(0)
        while True:
            shared.commit()


@app.function(volumes={"/data": squall.Volume.from_name("doomed", create_if_missing=True)}, single_use_containers=True)
def commit_after_removal() -> str:
    """Gateways know for some seconds longer that it was there."""
    doomed = squall.Volume.from_name("doomed")
    squall.Volume.objects.delete("doomed")
    for number in range(600):
        Path("/data/a.txt").write_text(str(number))
        try:
            doomed.commit()
        except RuntimeError as error:
            return str(error)
        time.sleep(0.1)
    return "committed"


@app.function(volumes={"/data": shared.read_only()}, single_use_containers=True)
def read_only() -> tuple[dict[str, str], str, dict[str, str]]:
    before = tree("/data")
    try:
        Path("/data/unwritten").write_text("x")
        told = "written"
    except OSError as error:
        told = error.strerror or ""
    shared.reload()
    return before, told, tree("/data")


@app.function(
    volumes={"/opt/squall-test/part": shared.with_mount_options(sub_path="parts/one")}, single_use_containers=True
)
def part() -> list[str]:
    Path("/opt/squall-test/part/mine.txt").write_text("mine")
    return sorted(os.listdir("/opt/squall-test/part"))
