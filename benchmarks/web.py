"""What a web request costs beside uvicorn called directly: the same no-op ASGI app, in turns, from one client.

    scripts/bench web                            a temporary platform in one process
    .venv/bin/python benchmarks/web.py --turns 5

Prints p50 and p99 of a request on a kept connection, and the CPU time of all processes that serve it (the client's is
not in it). The ratio of CPU times says how much of uvicorn's throughput per core is left.
"""

from __future__ import annotations

import argparse
import http.client
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import squall

app = squall.App("bench-web")
PORT = 18931
REQUESTS = 300
_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


async def nothing(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The app."""
    if scope["type"] != "http":
        return
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@app.function(min_containers=1)
@squall.concurrent(max_inputs=100)
@squall.asgi_app()
def noop() -> Any:
    return nothing


def family() -> dict[int, list[int]]:
    """Children by parent, of all processes."""
    found: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    return found


def cpu_ms(roots: list[int]) -> float:
    """Of processes and everything below them."""
    children, pending, ticks = family(), list(roots), 0
    while pending:
        pid = pending.pop()
        pending += children.get(pid, [])
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks * _TICK_MS


class Side:
    """One of the two that are compared."""

    def __init__(self, name: str, url: str, roots: list[int]) -> None:
        parts = urlsplit(url)
        self.name, self._path, self._roots = name, parts.path or "/", roots
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        self.times_ms: list[float] = []
        self.cpu_ms = 0.0

    def ask(self, number: int, *, measure: bool = True) -> None:
        before = cpu_ms(self._roots)
        for _ in range(number):
            began = time.perf_counter()
            self._connection.request("GET", self._path)
            if self._connection.getresponse().read() != b"ok":
                raise SystemExit(f"{self.name} did not answer")
            if measure:
                self.times_ms.append((time.perf_counter() - began) * 1000)
        if measure:
            self.cpu_ms += cpu_ms(self._roots) - before

    def row(self) -> str:
        ranked = sorted(self.times_ms)
        p50, p99 = statistics.median(ranked), ranked[int(len(ranked) * 0.99)]
        return f"| {self.name} | {p50:.2f} | {p99:.2f} | {self.cpu_ms / len(ranked):.3f} |"


@contextmanager
def uvicorn() -> Iterator[int]:
    """The app served directly."""
    words = ["-m", "uvicorn", "web:nothing", "--port", str(PORT), "--lifespan", "off", "--log-level", "critical"]
    words += ["--timeout-keep-alive", "120"]  # longer than the others' turns
    child = subprocess.Popen([sys.executable, *words], cwd=Path(__file__).parent)
    try:
        for _ in range(200):
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
            try:
                connection.request("GET", "/")
                connection.getresponse().read()
                break
            except OSError:
                time.sleep(0.1)
        yield child.pid
    finally:
        child.terminate()
        child.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=6)
    turns = parser.parse_args().turns
    with app.run(), uvicorn() as direct:
        platform = [pid for pid in family().get(os.getpid(), []) if pid != direct]
        url = noop.get_web_url()
        assert url is not None
        sides = [Side("uvicorn", f"http://127.0.0.1:{PORT}/", [direct]), Side("squall", url, platform)]
        for side in sides:
            side.ask(100, measure=False)
        for _ in range(turns):
            for side in sides:
                side.ask(REQUESTS)
    print("| | p50 ms | p99 ms | CPU ms per request |\n|---|---|---|---|")
    for side in sides:
        print(side.row())
    ratio = statistics.median(sides[1].times_ms) / statistics.median(sides[0].times_ms)
    print(f"p50 is {ratio:.1f} x, CPU {sides[1].cpu_ms / max(1.0, sides[0].cpu_ms):.1f} x")


if __name__ == "__main__":
    main()
