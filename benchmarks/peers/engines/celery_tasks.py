"""Celery's side of the work: imported by its worker and by the client. Configured through the environment."""

from __future__ import annotations

import os
import time

from benchmarks.peers.works import WORK_CPU_S
from celery import Celery

REDIS = "PEERS_REDIS_URL"
LATE = "PEERS_ACKS_LATE"

app = Celery("peers", broker=os.environ[REDIS], backend=os.environ[REDIS])
app.conf.update(
    task_acks_late=os.environ[LATE] == "1",
    # Values are Python objects, 1 MiB of bytes among them: JSON would encode them twice.
    task_serializer="pickle",
    result_serializer="pickle",
    accept_content=["pickle"],
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task
def noop(value: object) -> object:
    return value


@app.task
def work(value: object) -> object:
    until = time.thread_time() + WORK_CPU_S
    while time.thread_time() < until:
        pass
    return value


@app.task(ignore_result=True)
def fire(value: object) -> None:
    del value
