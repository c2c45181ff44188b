"""squall: a temporary embedded platform, each service as its own process, and two containers per function."""

from __future__ import annotations

import json
import os
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

from benchmarks.peers.engines import squall_functions
from benchmarks.peers.engines.contract import Engine, NotOffered, Task

import squall
from squall import config, local
from squall.errors import UnimplementedError


class SquallEngine(Engine):
    """The platform and this process as its caller."""

    def __init__(self, *, sync_interval: str) -> None:
        self._sync_interval = sync_interval
        self._open = ExitStack()

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
        try:
            squall_functions.noop.spawn_map(range(count))  # type: ignore[attr-defined,unused-ignore]
        except UnimplementedError:
            raise NotOffered("not in this squall yet") from None
        return count


def durability(server: local.LocalServer) -> str:
    """What the server says that an acknowledged call survives."""
    request = urllib.request.Request(server.url + "/v1/info", headers={"Authorization": f"Bearer {server.token}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["durability"])
