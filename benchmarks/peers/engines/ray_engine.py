"""Ray: two worker processes, no dashboard. Arguments and results are objects in shared memory; nothing is on disk."""

from __future__ import annotations

import time
from pathlib import Path

import ray
from benchmarks.peers.engines.contract import Engine, Task
from benchmarks.peers.works import WORK_CPU_S, WORKERS

OBJECT_STORE_BYTES = 1 << 30


@ray.remote
def noop(value: object) -> object:
    return value


@ray.remote
def work(value: object) -> object:
    until = time.thread_time() + WORK_CPU_S
    while time.thread_time() < until:
        pass
    return value


class RayEngine(Engine):
    """One local cluster; this process is its driver."""

    def start(self, folder: Path) -> dict[str, str]:
        ray.init(
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(folder / "ray"),
        )
        return {"version": f"ray {ray.__version__}"}

    def stop(self) -> None:
        ray.shutdown()

    def call(self, value: object) -> object:
        return ray.get(noop.remote(value))

    def fan_out(self, task: Task, count: int, limit_s: float) -> list[object]:
        function = {"noop": noop, "work": work}[task]
        futures = [function.remote(number) for number in range(count)]
        try:
            return list(ray.get(futures, timeout=limit_s))
        except ray.exceptions.GetTimeoutError:
            done, _ = ray.wait(futures, num_returns=count, timeout=0)
            return list(ray.get(done))

    def enqueue(self, value: object) -> None:
        noop.remote(value)
