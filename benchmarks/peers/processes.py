"""Processes of one session: everything that names its folder in its environment, command line or working directory.

Standard library only: also read in peers' venvs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
STOP_S = 5.0


def belonging_to(folder: Path) -> Iterator[int]:
    """Ids of living processes of a session, without our own."""
    wanted = os.fsencode(folder)
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid() and _mentions(Path("/proc", entry), wanted):
            yield int(entry)


def _mentions(process: Path, wanted: bytes) -> bool:
    with contextlib.suppress(OSError):
        if wanted in (process / "environ").read_bytes() or wanted in (process / "cmdline").read_bytes():
            return True
    with contextlib.suppress(OSError):
        return wanted in os.fsencode(os.readlink(process / "cwd"))
    return False


def cpu_seconds(folder: Path) -> float:
    """User and system time so far of a session's living processes and of this one."""
    return sum(_cpu(pid) for pid in (*belonging_to(folder), os.getpid()))


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # ended in between
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def end(process: subprocess.Popen[bytes], grace_s: float = STOP_S) -> None:
    """Asks one of our children to end, then makes it."""
    process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def kill_all(folder: Path) -> None:
    """Ends what a session has left behind."""
    deadline = time.monotonic() + STOP_S
    while (left := list(belonging_to(folder))) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def spawn(command: Sequence[str | Path], log: Path) -> subprocess.Popen[bytes]:
    """A child whose output goes to a file."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=log.parent
        )


def wait_for_port(port: int, process: subprocess.Popen[bytes], limit_s: float = 30.0) -> None:
    """Until something answers there. Raises when the process ends before, or it takes too long."""
    deadline = time.monotonic() + limit_s
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens on port {port} after {limit_s:.0f} s")
        time.sleep(0.02)
