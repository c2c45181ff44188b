"""Runs one session of a peer: its venv, its folder, its process, its end. Owns what is left behind: nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.peers.peers import Peer
from benchmarks.peers.processes import kill_all
from benchmarks.peers.works import DEPTH, Sample, Work, sample_from_wire

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 60.0
"""Start, warm-up and end together."""
INSTALL_LIMIT_S = 600.0
DEPTHS_LIMIT_S = 240.0
LOG_TAIL = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one session is to do."""

    peer: Peer
    round: int
    works: tuple[Work, ...]
    depths: tuple[int, ...] = ()

    @property
    def limit_s(self) -> float:
        """After which it is killed: its works end by themselves before, if they can."""
        return START_LIMIT_S + sum(1.5 * work.limit_s for work in self.works) + DEPTHS_LIMIT_S * len(self.depths)


def python_of(peer: Peer, cache: Path) -> Path:
    """The interpreter that has the peer's packages: made at the first use, and again when a pinned version changed."""
    if not peer.packages:
        return Path(sys.executable)
    venv = cache / peer.venv
    python, stamp, wanted = venv / "bin" / "python", venv / "packages", "\n".join(peer.packages)
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"peers: installing {', '.join(peer.packages)} ...", file=sys.stderr, flush=True)
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    shutil.rmtree(venv, ignore_errors=True)
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(venv)],
        [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), *peer.packages],
    ):
        subprocess.run(command, check=True, timeout=INSTALL_LIMIT_S, stdin=subprocess.DEVNULL)
    stamp.write_text(wanted)
    return python


def run(order: Order, cache: Path) -> list[Sample]:
    """The samples of one session; a peer that cannot be had or does not start is a reason in every cell."""
    try:
        python = python_of(order.peer, cache)
    except (subprocess.SubprocessError, OSError) as error:
        return _all_skipped(order, f"not run: cannot be installed ({type(error).__name__})")
    with _folder() as folder:
        output = folder / "samples"
        ending = _drive(order, python, folder, output)
        lines = output.read_text().splitlines() if output.exists() else []
        samples = [sample_from_wire(json.loads(line)) for line in lines]
        return samples + _all_skipped(order, ending or "not run", samples)


def _drive(order: Order, python: Path, folder: Path, output: Path) -> str:
    """Runs the driver; how it ended, when not well."""
    plan = {
        "engine": order.peer.name,
        "round": order.round,
        "folder": str(folder),
        "output": str(output),
        "works": [asdict(work) for work in order.works],
        "depths": order.depths,
    }
    log = folder / "driver.log"
    with log.open("wb") as file:
        child = subprocess.Popen(
            [str(python), "-P", "-m", "benchmarks.peers.driver", json.dumps(plan)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=folder,
            env=_environment(folder),
            start_new_session=True,
        )
        try:
            status = child.wait(order.limit_s)
        except subprocess.TimeoutExpired:
            return f"stopped at the limit of {order.limit_s:.0f} s"
        finally:
            if child.poll() is None:
                os.kill(child.pid, signal.SIGKILL)
                child.wait()
            kill_all(folder)
    tail = " ".join(log.read_text(errors="replace")[-LOG_TAIL:].split())
    return f"ended with status {status}: {tail}" if status else ""


def _environment(folder: Path) -> dict[str, str]:
    """Ours without squall's settings; home and temporary files are in the session's folder, and go with it."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("SQUALL_", "OTEL_"))}
    mine.pop("PYTHONDONTWRITEBYTECODE", None)
    own = {"HOME": folder, "TMPDIR": folder, "PYTHONPATH": ROOT, "SQUALL_HOME": folder / "squall"}
    return {**mine, **{name: str(path) for name, path in own.items()}, "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def _folder() -> Iterator[Path]:
    # Short: Ray and squall have unix sockets in it, whose paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="pb-"))
    try:
        yield folder
    finally:
        kill_all(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _all_skipped(order: Order, reason: str, present: list[Sample] | None = None) -> list[Sample]:
    """A sample that tells why for each that there is not."""
    wanted = [(work.name, 0) for work in order.works] + [(DEPTH.name, depth) for depth in order.depths]
    had = {(sample.work, sample.depth) for sample in present or ()}
    return [
        Sample(engine=order.peer.name, work=work, round=order.round, depth=depth, skipped=reason)
        for work, depth in wanted
        if (work, depth) not in had
    ]
