"""Volumes beside `cp` and beside a plain copy to S3, in turns: one large file, and many small ones, there and back.

.venv/bin/python benchmarks/volumes.py
.venv/bin/python benchmarks/volumes.py --mib 256 --files 1000 --rounds 3

`cp` syncs what it has written, as a commit does. The S3 server is SeaweedFS from its wheel, without TLS.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from calls import commit, durability, machine, percentile
from hops import Processes, platform

import squall

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support.s3_server import S3Server

SMALL_BYTES = 4096
AT_ONCE = 8


def make(folder: Path, mib: int, files: int) -> dict[str, Path]:
    """What is moved: nothing that is equal, nothing that shrinks."""
    data = random.Random(1)
    large, small = folder / "large", folder / "small"
    large.mkdir()
    small.mkdir()
    with open(large / "file", "wb") as file:
        for _ in range(mib):
            file.write(data.randbytes(1 << 20))
    for number in range(files):
        (small / f"{number:06}").write_bytes(data.randbytes(SMALL_BYTES))
    return {f"one file of {mib} MiB": large, f"{files} files of {SMALL_BYTES >> 10} KiB": small}


def copy(source: Path, target: Path) -> None:
    """`cp -r`, and on disk."""
    shutil.copytree(source, target)
    for path in (*target.iterdir(), target):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def to_s3(s3: S3Server, source: Path, round_: int) -> None:
    """Each file an object."""
    store = s3.store("plain")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda path: store.put(f"{round_}/{path.name}", path), sorted(source.iterdir())))


def from_s3(s3: S3Server, source: Path, round_: int, target: Path) -> None:
    """And back."""
    store = s3.store("plain")
    target.mkdir()

    def fetch(path: Path) -> None:
        with open(target / path.name, "wb") as file:
            for chunk in store.get(f"{round_}/{path.name}"):
                file.write(chunk)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(fetch, sorted(source.iterdir())))


def to_volume(volume: squall.Volume, source: Path) -> None:
    """One version."""
    with volume.batch_upload() as batch:
        batch.put_directory(source, "/")


def from_volume(volume: squall.Volume, source: Path, target: Path) -> None:
    """All of it."""
    target.mkdir()

    def fetch(path: Path) -> None:
        with open(target / path.name, "wb") as file:
            volume.read_file_into_fileobj(path.name, file)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(fetch, sorted(source.iterdir())))


class Table:
    """Wall-clock time and CPU of each way, over all rounds."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._took: dict[str, list[float]] = defaultdict(list)
        self._cpu: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def measure(self, what: str, work: Callable[[], None]) -> None:
        """One round."""
        before, own, began = self._processes.cpu_us(), _own_s(), time.perf_counter()
        work()
        self._took[what].append(time.perf_counter() - began)
        self._cpu[what]["this process"].append(_own_s() - own)
        used: dict[str, float] = defaultdict(float)
        for (process, pid), cpu_us in self._processes.cpu_us().items():
            used[process] += (cpu_us - before.get((process, pid), 0.0)) / 1e6
        for process, cpu_s in used.items():
            if process == "gateway":
                self._cpu[what][process].append(cpu_s)

    def print(self) -> None:
        """A row for each way."""
        print("| what | s, p50 | s, fastest | CPU s, p50 |\n|---|---|---|---|")
        for what, took in self._took.items():
            cpu = ", ".join(f"{name} {percentile(each, 0.5):.2f}" for name, each in self._cpu[what].items())
            print(f"| {what} | {percentile(took, 0.5):.2f} | {min(took):.2f} | {cpu} |")


def _own_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def turn(table: Table, s3: S3Server, name: str, source: Path, folder: Path, round_: int) -> None:
    """Every way once."""
    table.measure(f"{name}: cp", lambda: copy(source, folder / "cp"))
    table.measure(f"{name}: to S3", lambda: to_s3(s3, source, round_))
    table.measure(f"{name}: from S3", lambda: from_s3(s3, source, round_, folder / "s3"))
    with squall.Volume.ephemeral() as volume:
        table.measure(f"{name}: to a volume", lambda: to_volume(volume, source))
        table.measure(f"{name}: from a volume", lambda: from_volume(volume, source, folder / "volume"))
    for each in ("cp", "s3", "volume"):
        shutil.rmtree(folder / each)
    for path in source.iterdir():  # else the next round's blocks are there already
        with open(path, "r+b") as file:
            for place in range(0, path.stat().st_size, 1 << 20):
                file.seek(place)
                file.write(random.randbytes(16))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="squall-volumes-") as text, platform(("--processes",)) as server:
        folder = Path(text)
        sources = make(folder, given.mib, given.files)
        with S3Server(folder / "server") as s3:
            s3.make("plain")
            table = Table(Processes(server))
            print(f"{commit()}, {machine()}; services as processes; durability: {durability()}\n")
            for round_ in range(given.rounds):
                for name, source in sources.items():
                    turn(table, s3, name, source, folder, round_)
            table.print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
