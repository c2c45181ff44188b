"""One Temporal worker process: `python -m benchmarks.peers.engines.temporal_tasks ADDRESS`, until it is ended."""

from __future__ import annotations

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.peers.works import WORK_CPU_S
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

QUEUE = "peers"
THREADS = 8


@activity.defn
def noop(value: int) -> int:
    return value


@activity.defn
def echo(value: bytes) -> bytes:
    return value


@activity.defn
def work(value: int) -> int:
    until = time.thread_time() + WORK_CPU_S
    while time.thread_time() < until:
        pass
    return value


async def serve(address: str) -> None:
    """Take activities until the process is ended."""
    client = await Client.connect(address)
    with ThreadPoolExecutor(THREADS) as threads:
        worker = Worker(
            client,
            task_queue=QUEUE,
            activities=[noop, echo, work],
            activity_executor=threads,
            max_concurrent_activities=THREADS,
        )
        await worker.run()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
