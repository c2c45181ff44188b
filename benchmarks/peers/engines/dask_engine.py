"""Dask: a LocalCluster of two single-threaded worker processes, no dashboard. Calls are in the scheduler's memory."""

from __future__ import annotations

import time
from pathlib import Path

import dask
import distributed
from benchmarks.peers.engines.contract import Engine, Task
from benchmarks.peers.works import WORK_CPU_S, WORKERS


def noop(value: object) -> object:
    return value


def work(value: object) -> object:
    until = time.thread_time() + WORK_CPU_S
    while time.thread_time() < until:
        pass
    return value


class DaskEngine(Engine):
    """Scheduler in this process, as LocalCluster has it."""

    def start(self, folder: Path) -> dict[str, str]:
        dask.config.set(temporary_directory=str(folder))
        self._cluster = distributed.LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
        )
        self._client = distributed.Client(self._cluster)
        return {"version": f"dask {dask.__version__}"}

    def stop(self) -> None:
        self._client.close()
        self._cluster.close()

    def call(self, value: object) -> object:
        return self._client.submit(noop, value, pure=False).result()

    def fan_out(self, task: Task, count: int, limit_s: float) -> list[object]:
        function = {"noop": noop, "work": work}[task]
        futures = self._client.map(function, range(count), pure=False)
        try:
            distributed.wait(futures, timeout=limit_s)
        except (TimeoutError, distributed.TimeoutError):
            futures = [future for future in futures if future.done()]
        return list(self._client.gather(futures))

    def enqueue(self, value: object) -> None:
        distributed.fire_and_forget(self._client.submit(noop, value, pure=False))

    def enqueue_many(self, count: int, limit_s: float) -> int:
        distributed.fire_and_forget(self._client.map(noop, range(count), pure=False))
        return count
