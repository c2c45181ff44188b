"""Temporal: the dev server with a database file, two worker processes, and standalone activities: a durable call of one
function without a workflow around it, the nearest thing that Temporal has to a call of the others."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.peers.engines import temporal_tasks
from benchmarks.peers.engines.contract import Engine, Task
from benchmarks.peers.processes import end, free_port, spawn, wait_for_port
from benchmarks.peers.works import WORKERS
from temporalio.client import Client

LIMIT = timedelta(seconds=60)
CONNECT_TRIES = 50


class TemporalEngine(Engine):
    """The server, the workers, and this process as client."""

    def start(self, folder: Path) -> dict[str, str]:
        port = free_port()
        address = f"127.0.0.1:{port}"
        program = Path(sys.executable).with_name("temporal")
        command: list[str | Path] = [program, "server", "start-dev", "--headless", "--ip", "127.0.0.1"]
        command += ["--port", str(port), "--db-filename", folder / "temporal.db", "--log-level", "error"]
        self._server = spawn(command, folder / "temporal.log")
        wait_for_port(port, self._server)
        self._loop = asyncio.new_event_loop()
        self._client = self._loop.run_until_complete(self._connect(address))
        self._workers = [
            spawn([sys.executable, "-m", temporal_tasks.__name__, address], folder / f"worker-{number}.log")
            for number in range(WORKERS)
        ]
        self._ids = itertools.count()
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
        return {"version": f"temporalio {version('temporalio')}, {said.strip()}"}

    async def _connect(self, address: str) -> Client:
        for _ in range(CONNECT_TRIES - 1):
            try:
                return await Client.connect(address)
            except RuntimeError:  # it listens before its namespace is there
                await asyncio.sleep(0.1)
        return await Client.connect(address)

    def stop(self) -> None:
        for worker in self._workers:
            end(worker)
        end(self._server)

    async def _execute(self, function: Callable[..., Any], value: object) -> object:
        answer: object = await self._client.execute_activity(
            function, value, id=self._id(), task_queue=temporal_tasks.QUEUE, schedule_to_close_timeout=LIMIT
        )
        return answer

    def _id(self) -> str:
        return f"a-{next(self._ids)}"

    def call(self, value: object) -> object:
        function = temporal_tasks.echo if isinstance(value, bytes) else temporal_tasks.noop
        return self._loop.run_until_complete(self._execute(function, value))

    def fan_out(self, task: Task, count: int, limit_s: float) -> list[object]:
        function = {"noop": temporal_tasks.noop, "work": temporal_tasks.work}[task]

        async def run() -> list[object]:
            async with asyncio.TaskGroup() as group:
                calls = [group.create_task(self._execute(function, number)) for number in range(count)]
                done, late = await asyncio.wait(calls, timeout=limit_s)
                for call in late:
                    call.cancel()
            return [call.result() for call in calls if call in done]

        return self._loop.run_until_complete(run())

    def enqueue(self, value: object) -> None:
        self._loop.run_until_complete(
            self._client.start_activity(
                temporal_tasks.noop,
                value,
                id=self._id(),
                task_queue=temporal_tasks.QUEUE,
                schedule_to_close_timeout=LIMIT,
            )
        )
