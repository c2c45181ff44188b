"""What the bus costs on this machine, with fsync at every write. `python -m benchmarks.bus [seconds per line]`

Server, publisher and worker are three processes. Prints machine, date and for each line rate, p50 and p99.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from tests.support.nats_server import NatsServer

from squall_bus import Bus, BusSettings, ConsumerSpec, Delivery, Message, Record, connect
from squall_contracts import topology

TOPOLOGY = topology.build(shards=1)
JOURNAL, WORK, POOL = "JOURNAL_local_00", "WORK_local_00", "pool"
SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else 3.0
PAYLOAD = b"x" * 200
HEADERS = {"Squall-Reply": "_INBOX.x.1", "Squall-Deadline": "1700000000.0", "traceparent": "00-" + "a" * 50}


class Calls:
    """Fresh subjects, as calls have them."""

    def __init__(self) -> None:
        self._number = 0
        self._stem = f"{time.time_ns():x}"

    def next(self) -> tuple[str, str]:
        self._number += 1
        call = f"fc-{self._stem}{self._number:08x}"
        return f"calls.local.00.{POOL}.{call}.0", call


def percentile(values: list[float], share: float) -> float:
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


async def measure(name: str, work: Callable[[], Awaitable[object]], concurrency: int) -> None:
    """Run `work` in so many loops for SECONDS; print rate and latency."""
    latencies: list[float] = []
    until = time.perf_counter() + SECONDS

    async def loop() -> None:
        while (started := time.perf_counter()) < until:
            await work()
            latencies.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(loop() for _ in range(concurrency)))
    show(name, len(latencies) / (time.perf_counter() - started), latencies)


def show(name: str, rate: float, latencies: list[float] | None = None) -> None:
    spread = ""
    if latencies:
        spread = f"   p50 {percentile(latencies, 0.5) * 1e3:8.2f} ms   p99 {percentile(latencies, 0.99) * 1e3:8.2f} ms"
    print(f"{name:58s} {rate:9,.0f}/s{spread}", flush=True)


async def publishing(bus: Bus, calls: Calls) -> None:
    async def publish() -> None:
        subject, call = calls.next()
        await bus.publish(subject, PAYLOAD, headers=HEADERS, msg_id=call, ttl_s=3600)

    for concurrency in (1, 16, 256, 1024):
        before = replace(bus.stats)
        await measure(f"publish, group commit, concurrency {concurrency}", publish, concurrency)
        records, writes = bus.stats.published - before.published, bus.stats.writes - before.writes
        print(f"{'':58s} {records / max(1, writes):9.1f} records a write")

    async def publish_plain() -> None:
        await bus.publish("usage.local.fn", PAYLOAD, headers=HEADERS)

    for concurrency in (1, 256):
        await measure(f"publish, no batches, concurrency {concurrency}", publish_plain, concurrency)

    async def batch() -> None:
        records = []
        for _ in range(1000):
            subject, call = calls.next()
            records.append(Record(subject, PAYLOAD, HEADERS, call, 3600))
        await bus.publish_batch(records)

    started, before = time.perf_counter(), replace(bus.stats)
    await measure("publish_batch of 1,000 (batches)", batch, 1)
    show("publish_batch of 1,000 (records)", (bus.stats.published - before.published) / (time.perf_counter() - started))


async def soon(bus: Bus) -> None:
    number = 40_000
    started = time.perf_counter()
    for n in range(number):
        bus.publish_soon("events.local.00.w.c.0", PAYLOAD)
        if n % 5000 == 4999:
            await bus.flush(30)
    show("publish_soon + flush (async stream)", number / (time.perf_counter() - started))


async def reading(bus: Bus) -> None:
    subject, call = Calls().next()
    await bus.publish(subject, PAYLOAD, headers=HEADERS, msg_id=call)
    await measure("get_last, concurrency 1", lambda: bus.get_last(JOURNAL, subject), 1)
    await measure("get_last, concurrency 64", lambda: bus.get_last(JOURNAL, subject), 64)
    started, count = time.perf_counter(), 0
    async for _ in bus.read(JOURNAL, "calls.>"):
        count += 1
        if count == 30_000:
            break
    show("read, direct get pages", count / (time.perf_counter() - started))
    kv = bus.kv("desired")
    await measure("kv.put, concurrency 1", lambda: kv.put("k", b"v"), 1)
    await measure("kv.get, concurrency 1", lambda: kv.get("k"), 1)


async def pulling(bus: Bus) -> None:
    """How fast a backlog is pulled and acked."""
    backlog = (await bus.stream_info(WORK)).messages
    wanted = min(backlog, 30_000)
    taken, done = 0, asyncio.Event()
    window = 256

    def take(delivery: Delivery) -> None:
        nonlocal taken
        taken += 1
        delivery.ack()
        if taken >= wanted:
            done.set()
        elif puller.outstanding <= window // 2:
            puller.want(window)

    async with await bus.pull(WORK, POOL, take) as puller:
        started = time.perf_counter()
        puller.want(window)
        await done.wait()
    show(f"pull + ack, backlog of {wanted:,}", wanted / (time.perf_counter() - started))
    await bus.purge(WORK, ">")


async def end_to_end(bus: Bus, calls: Calls, url: str) -> None:
    """publish (ack awaited) -> JOURNAL -> WORK -> worker process -> reply to our inbox."""
    inbox = bus.new_inbox()
    waiting: dict[str, asyncio.Future[None]] = {}

    def on_reply(message: Message) -> None:
        future = waiting.pop(message.subject.rsplit(".", 1)[1], None)
        if future is not None and not future.done():
            future.set_result(None)

    async def call() -> None:
        subject, name = calls.next()
        future = waiting[name] = asyncio.get_running_loop().create_future()
        headers = HEADERS | {"Squall-Reply": f"{inbox}.{name}"}
        await bus.publish(subject, PAYLOAD, headers=headers, msg_id=name, ttl_s=3600)
        await future

    await bus.subscribe(inbox + ".*", on_reply)
    worker = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.bus", "--worker", url)
    try:
        await call()
        for concurrency in (1, 16, 256):
            await measure(f"end to end, worker process, concurrency {concurrency}", call, concurrency)
    finally:
        worker.kill()
        await worker.wait()


async def work(url: str) -> None:
    async with connect(BusSettings(url=url), TOPOLOGY) as bus:

        def take(delivery: Delivery) -> None:
            bus.send(delivery.header("Squall-Reply") or "nobody", b"done")
            delivery.ack()
            if puller.outstanding <= 32:
                puller.want(64)

        async with await bus.pull(WORK, POOL, take) as puller:
            puller.want(64)
            await asyncio.Event().wait()


def fsync_ms(folder: Path) -> tuple[float, float]:
    times = []
    with (folder / "fsync").open("wb") as file:
        for _ in range(200):
            file.write(b"x" * 4096)
            file.flush()
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - started) * 1e3)
    return percentile(times, 0.5), percentile(times, 0.99)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        p50, p99 = fsync_ms(Path(folder))
        load = os.getloadavg()[0]
        print(
            f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.machine()}, {os.cpu_count()} cores (load {load:.1f}),"
        )
        print(
            f"python {platform.python_version()}, uvloop, fdatasync 4 KiB p50 {p50:.2f} ms p99 {p99:.2f} ms, ", end=""
        )
        async with (
            NatsServer(Path(folder) / "nats") as server,
            connect(BusSettings(url=server.url), TOPOLOGY) as bus,
        ):
            print(f"nats-server {'.'.join(map(str, bus.server_version))}, sync_interval: always, R1")
            await bus.ensure_topology()
            await bus.ensure_consumer(WORK, ConsumerSpec(name=POOL, filter_subject=f"calls.local.00.{POOL}.>"))
            calls = Calls()
            await publishing(bus, calls)
            await soon(bus)
            await reading(bus)
            await pulling(bus)
            await end_to_end(bus, calls, server.url)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        uvloop.run(work(sys.argv[2]))
    else:
        uvloop.run(main())
