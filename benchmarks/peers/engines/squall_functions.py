"""The functions that squall runs. Imports nothing but squall: this file is all that its containers get."""

from __future__ import annotations

import time

import squall

app = squall.App("bench-peers")
deep_app = squall.App("bench-peers-deep")

WORK_CPU_S = 0.005
WORKERS = 2


@app.function(min_containers=WORKERS, max_containers=WORKERS)
def noop(value: object) -> object:
    return value


@app.function(min_containers=WORKERS, max_containers=WORKERS)
def work(value: object) -> object:
    until = time.thread_time() + WORK_CPU_S
    while time.thread_time() < until:
        pass
    return value


@deep_app.function(max_containers=1)
def deep(value: object) -> object:
    time.sleep(3600)
    return value
