"""squall: a temporary embedded platform, each service as its own process, and two containers per function."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

from benchmarks.peers.engines import squall_functions
from benchmarks.peers.engines.contract import Engine, Task

import squall
from squall import config, local

QUEUE_LIMIT = 1_000_000
"""Of one function, by default."""
ROOM = 1_000
"""For what is enqueued to measure it."""
STEP = 50_000


class SquallEngine(Engine):
    """The platform and this process as its caller."""

    def __init__(self, *, sync_interval: str) -> None:
        self._sync_interval = sync_interval
        self._open = ExitStack()
        self._queued = 0

    def start(self, folder: Path) -> dict[str, str]:
        arguments = ("--processes", "--sync-interval", self._sync_interval)
        server = self._open.enter_context(local.start_ephemeral(arguments))
        os.environ.update({config.SERVER_URL: server.url, config.TOKEN: server.token})
        self._open.enter_context(squall_functions.app.run())
        return {"version": f"squall {squall.__version__}", "durability": durability(server)}

    def stop(self) -> None:
        self._open.close()

    def call(self, value: object) -> object:
        return squall_functions.noop.remote(value)

    def fan_out(self, task: Task, count: int, limit_s: float) -> list[object]:
        function = {"noop": squall_functions.noop, "work": squall_functions.work}[task]
        values: list[object] = []
        until = monotonic() + limit_s
        for value in function.map(range(count)):
            values.append(value)
            if monotonic() > until:
                break
        return values

    def enqueue(self, value: object) -> None:
        squall_functions.noop.spawn(value)

    def enqueue_many(self, count: int, limit_s: float) -> int:
        squall_functions.noop.experimental_spawn_map(range(count))
        return count

    def prepare_depth(self, depth: int) -> None:
        """The app is deployed, not run: what is queued ends with the platform, not one by one before it."""
        if not self._queued:
            squall_functions.deep_app.deploy()
        for count in in_steps(min(depth, QUEUE_LIMIT - ROOM) - self._queued):
            squall_functions.deep.experimental_spawn_map(range(count))
            self._queued += count

    def enqueue_deep(self, value: object) -> None:
        squall_functions.deep.spawn(value)
        self._queued += 1


def in_steps(count: int) -> Iterator[int]:
    """Parts of a count."""
    for first in range(0, count, STEP):
        yield min(STEP, count - first)


def durability(server: local.LocalServer) -> str:
    """What the server says that an acknowledged call survives."""
    request = urllib.request.Request(server.url + "/v1/info", headers={"Authorization": f"Bearer {server.token}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["durability"])
